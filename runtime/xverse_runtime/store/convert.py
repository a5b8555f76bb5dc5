"""From a published checkpoint to a store: streaming, restartable, nothing half-made left behind.

Files are written one after the other into ``<output>.partial``. A finished file is recorded there
with its digest, so that a conversion that was killed goes on after the last one. When all are
there they are read back and checked, and only then does the directory get its final name.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from torch import Tensor

from xverse_runtime.checkpoint import LAYOUTS, absent_files, read_checkpoint, weight_files
from xverse_runtime.config import ModelConfig
from xverse_runtime.errors import IntegrityError, UsageError, XverseError
from xverse_runtime.model_dir import ModelDirectory
from xverse_runtime.store.journal import (
    JOURNAL_FILE,
    Journal,
    finished_files,
    reopen,
    weight_stamps,
)
from xverse_runtime.store.layout import StoreFile, StoreLayout
from xverse_runtime.store.manifest import (
    MANIFEST_FILE,
    FileRecord,
    Manifest,
    StorePrecision,
    is_store,
)
from xverse_runtime.store.place import (
    check_space,
    partial_of,
    publish,
    refuse_existing,
    refuse_foreign,
    sole_writer,
    writing,
)
from xverse_runtime.store.shard import shard_bytes, write_small
from xverse_runtime.store.verify import damaged_files
from xverse_runtime.store.writer import Writer
from xverse_runtime.types import ProgressCallback

# What a store takes over as it is: everything but weights that the runtime reads, and the licence.
COPIED_PATTERNS = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "modeling_*.py",
    "LICENSE*",
    "MODEL_LICENSE*",
)


# Packing an expert takes about 12 bytes a weight for a while (measured: 160 MB an expert of A4.2B);
# together the experts in the making stay within this, whatever the number of processors.
PACKING_BYTES = 1.5 * 2**30
PACKING_BYTES_PER_WEIGHT = 12


@dataclass(frozen=True)
class ConversionPlan:
    """What a conversion will do, for showing before it starts.

    ``done_bytes`` are finished; ``already_there`` when the very store stands at ``output``.
    """

    output: Path
    total_bytes: int
    done_bytes: int
    already_there: bool = False


def convert_checkpoint(
    source: Path,
    output: Path,
    precision: StorePrecision,
    *,
    source_name: str | None = None,
    threads: int | None = None,
    on_plan: Callable[[ConversionPlan], None] = lambda plan: None,
    progress: ProgressCallback = lambda progress: None,
) -> Manifest:
    """Convert the published checkpoint in ``source`` to a store at ``output``.

    Args:
        source: a directory in the published layout; never changed.
        output: must not exist, or be the store that this conversion made before; then nothing is
            done. ``<output>.partial`` may be there, from an interrupted conversion.
        precision: formats of the parts.
        source_name: what the source is called; its directory's name when not given.
        threads: how many experts are packed at a time; ``None`` is one a processor, as far as
            memory should go.
        on_plan: told what will be done, before anything is written.
        progress: told the bytes of the store that are written.

    Raises:
        UsageError: ``store.target_exists``, ``store.is_source``, ``store.width``, ``store.busy``
            or ``store.not_writable``.
        ResourceError: ``store.disk_full``, before the start or in the middle.
        IntegrityError: a source that cannot be read or has weights that are not finite, or
            ``store.written_wrong``: what is read back is not what was written.
    """
    job = _Job.of(source, output, precision, source_name)
    made = job.already_made()
    if made is None:
        refuse_existing(output)
        tensors = read_checkpoint(job.source, job.layout.config)  # before anything is written
        with writing(job.partial, job.total_bytes), sole_writer(output):
            made = job.already_made()  # by another process, while this one came here
            if made is None:
                return job.run(tensors, threads, on_plan, progress)
    on_plan(ConversionPlan(output, job.total_bytes, job.total_bytes, already_there=True))
    return made


@dataclass(frozen=True)
class _Job:
    """One conversion: everything that is known before it begins.

    ``digests`` of the weight files, where they come and go: then these tell the source from
    others, and not the files.
    """

    source: ModelDirectory
    output: Path
    layout: StoreLayout
    about: dict[str, str]
    files: list[StoreFile]
    copied: dict[str, bytes]  # the small files that a store takes over
    digests: Mapping[str, str] | None

    @classmethod
    def of(
        cls,
        source: Path,
        output: Path,
        precision: StorePrecision,
        source_name: str | None,
        digests: Mapping[str, str] | None = None,
    ) -> _Job:
        directory = ModelDirectory.open(source)
        if is_store(directory):
            raise UsageError("store.is_source", path=str(directory.path))
        layout = StoreLayout(ModelConfig.from_dir(directory), precision)
        layout.check()
        about = {"name": source_name or directory.display_name}
        if directory.revision:
            about["revision"] = directory.revision
        copied = {name: directory.read_bytes(name) for name in _small_files(directory)}
        return cls(directory, output, layout, about, list(layout.files()), copied, digests)

    @property
    def partial(self) -> Path:
        return partial_of(self.output)

    @property
    def total_bytes(self) -> int:
        return sum(shard_bytes(file.specs) for file in self.files)

    @property
    def small_bytes(self) -> int:
        return sum(map(len, self.copied.values()))

    def already_made(self) -> Manifest | None:
        """The manifest of the store at ``output``, if this conversion would make the same.

        A revision stands for its weights. Without one, weights that were changed after the store
        was made are others.
        """
        try:
            made = ModelDirectory.open(self.output)
            manifest = Manifest.read(made)
            written = made.file(MANIFEST_FILE).stat().st_mtime_ns
            weights = [self.source.file(name) for name in self._weights_there()]
            changed = any(file.stat().st_mtime_ns > written for file in weights)
        except (XverseError, OSError):
            return None
        names = {file.name for file in self.files}
        copied = {name: one for name, one in manifest.files.items() if name not in names}
        same = (
            manifest.precision == self.layout.precision
            and manifest.source == self.about
            and manifest.files.keys() >= names
            and copied == {name: _record(data) for name, data in self.copied.items()}
        )
        return manifest if same and ("revision" in self.about or not changed) else None

    def run(
        self,
        tensors: Mapping[str, Tensor],
        threads: int | None,
        on_plan: Callable[[ConversionPlan], None],
        progress: ProgressCallback,
    ) -> Manifest:
        """Write what is not there yet, and publish it; the lock is held."""
        journal = self.begin()
        check_space(self.partial, self.total_bytes - journal.done_bytes + self.small_bytes)
        on_plan(ConversionPlan(self.output, self.total_bytes, journal.done_bytes))
        self.writer(journal, threads, progress).write(self.files, tensors)
        return self.complete(journal)

    def begin(self) -> Journal:
        """What is finished already, in the folder that is now this conversion's."""
        refuse_existing(self.output)
        refuse_foreign(self.partial, self.source.path)
        self.partial.mkdir(exist_ok=True)
        return Journal.resume(self.partial, self.layout, self._pins())

    def reopen(self, damaged: Collection[str]) -> Journal:
        """Make an interrupted conversion of the store at the output, which lacks ``damaged``.

        Raises:
            UsageError: ``store.target_exists``: it is another store, or one is being made.
        """
        directory = ModelDirectory.open(self.output)
        manifest = Manifest.read(directory, sizes=False)
        if manifest.precision != self.layout.precision or manifest.source != self.about:
            raise UsageError("store.target_exists", path=str(self.output))
        refuse_existing(self.partial)
        # a kill before the rename leaves the store as it was, with a file that nobody reads
        reopen(self.output, self.layout, self._pins(), self.undamaged(manifest, damaged))
        self.output.rename(self.partial)
        return self.begin()

    def undamaged(self, manifest: Manifest, damaged: Collection[str]) -> dict[str, FileRecord]:
        """The files with weights of a store, but for ``damaged``."""
        names = [file.name for file in self.files if file.name not in damaged]
        return {name: manifest.files[name] for name in names if name in manifest.files}

    def finished(self) -> dict[str, FileRecord]:
        """What an interrupted conversion has finished, without touching it."""
        return finished_files(self.partial, self.layout, self._pins())

    def writer(self, journal: Journal, threads: int | None, progress: ProgressCallback) -> Writer:
        threads = threads or _threads_for(self.layout)
        return Writer(self.partial, self.layout, journal, threads, progress, self.total_bytes)

    def complete(self, journal: Journal) -> Manifest:
        """Publish the store, of which all files are written."""
        manifest = self._finish(journal)
        publish(self.partial, self.output)
        # Only now: a kill before the rename finds everything finished the next time.
        (self.output / JOURNAL_FILE).unlink(missing_ok=True)
        return manifest

    def _finish(self, journal: Journal) -> Manifest:
        """Take over the small files, read everything back, and write the manifest."""
        # in the layout's order, whichever was written first
        records = {file.name: journal.records[file.name] for file in self.files}
        for name, data in self.copied.items():
            records[name] = write_small(self.partial / name, data)
        damaged = list(damaged_files(ModelDirectory.open(self.partial), records))
        for name in damaged:
            if name in journal.records:
                journal.discard(name)
        if damaged:
            raise IntegrityError("store.written_wrong", name=damaged[0], path=str(self.partial))
        manifest = Manifest(self.layout.precision, self.about, records)
        text = manifest.to_json() + "\n"
        write_small(self.partial / MANIFEST_FILE, text.encode())
        return manifest

    def _weights_there(self) -> list[str]:
        if self.digests is None:
            return weight_files(self.source)
        absent = absent_files(self.source, self.digests)
        return [name for name in self.digests if name not in absent]

    def _pins(self) -> dict[str, Any]:
        """What tells this source from others."""
        return weight_stamps(self.source) if self.digests is None else self._digests()

    def _digests(self) -> dict[str, str]:
        """SHA-256 of the configuration, the index and the weight files."""
        indexes = [index for index, _ in LAYOUTS if self.source.has(index)]
        read = {
            name: sha256(self.source.read_bytes(name)).hexdigest()
            for name in ("config.json", *indexes)
        }
        return {**read, **(self.digests or {})}


def _small_files(source: ModelDirectory) -> list[str]:
    """What is taken over as it is; a folder that is called so is none of it."""
    names = {name for pattern in COPIED_PATTERNS for name in source.names(pattern)}
    return sorted(name for name in names if not (source.path / name).is_dir())


def _record(data: bytes) -> FileRecord:
    return FileRecord(len(data), sha256(data).hexdigest())


def _threads_for(layout: StoreLayout) -> int:
    config = layout.config
    weights = 3 * config.hidden_size * config.intermediate_size
    affordable = int(PACKING_BYTES / (PACKING_BYTES_PER_WEIGHT * weights))
    return max(1, min(os.cpu_count() or 1, affordable))
