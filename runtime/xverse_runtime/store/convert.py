"""From a published checkpoint to a store: streaming, restartable, nothing half-made left behind.

Files are written one after the other into ``<output>.partial``. A finished file is recorded there
with its digest, so that a conversion that was killed goes on after the last one. When all are
there they are read back and checked, and only then does the directory get its final name.
"""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from torch import Tensor

from xverse_kernels.packing import ExpertLayout, pack_matrix
from xverse_kernels.types import SwigluWeights
from xverse_runtime.checkpoint import read_checkpoint
from xverse_runtime.config import ModelConfig
from xverse_runtime.errors import IntegrityError, ResourceError, UsageError
from xverse_runtime.model_dir import ModelDirectory
from xverse_runtime.store.journal import JOURNAL_FILE, Journal
from xverse_runtime.store.layout import EXPERTS, StoreFile, StoreLayout
from xverse_runtime.store.manifest import MANIFEST_FILE, FileRecord, Manifest, StorePrecision
from xverse_runtime.store.shard import ShardWriter, TensorSpec, shard_bytes
from xverse_runtime.store.verify import hash_file, verify_store
from xverse_runtime.tensors import PROJECTIONS, layer_prefix
from xverse_runtime.types import LoadProgress, ProgressCallback
from xverse_runtime.weights import split_shared

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


@dataclass(frozen=True)
class ConversionPlan:
    """What a conversion will do, for showing before it starts. ``done_bytes`` are finished."""

    output: Path
    total_bytes: int
    done_bytes: int


def convert_checkpoint(
    source: Path,
    output: Path,
    precision: StorePrecision,
    *,
    source_name: str | None = None,
    threads: int = 2,
    on_plan: Callable[[ConversionPlan], None] = lambda plan: None,
    progress: ProgressCallback = lambda progress: None,
) -> Manifest:
    """Convert the published checkpoint in ``source`` to a store at ``output``.

    Args:
        source: a directory in the published layout; never changed.
        output: must not exist; ``<output>.partial`` may, from an interrupted conversion.
        precision: formats of the parts.
        source_name: what the source is called; its directory's name when not given.
        threads: how many experts are quantised at a time.
        on_plan: told what will be done, before anything is written.
        progress: told the bytes of the store that are written.

    Raises:
        UsageError: ``store.target_exists``, ``store.width``, ``store.busy`` or
            ``store.not_writable``.
        ResourceError: ``store.disk_full``, before the start or in the middle.
        IntegrityError: a source that cannot be read or has weights that are not finite.
    """
    directory = ModelDirectory.open(source)
    config = ModelConfig.from_dir(directory)
    layout = StoreLayout(config, precision)
    files = _planned_files(layout)
    if output.exists():
        raise UsageError("store.target_exists", path=str(output))
    partial = output.with_name(output.name + ".partial")
    _check_is_ours(partial, directory)
    with _writing(partial, files):
        partial.mkdir(parents=True, exist_ok=True)
        with _sole_converter(partial):
            tensors = read_checkpoint(directory, config)
            journal = Journal.resume(partial, layout, directory)
            sizes = {file.name: shard_bytes(file.specs) for file in files}
            done = sum(sizes[file.name] for file in files if file.name in journal.records)
            total = sum(sizes.values())
            _check_disk(partial, total - done)
            on_plan(ConversionPlan(output, total, done))
            _Writer(partial, layout, tensors, journal, threads, progress, done, total).write(files)
            manifest = _finish(partial, directory, journal, precision, source_name)
        partial.rename(output)
        # Only now: a kill before the rename finds everything finished the next time.
        for name in (JOURNAL_FILE, ".lock"):
            (output / name).unlink(missing_ok=True)
    return manifest


def _check_is_ours(partial: Path, source: ModelDirectory) -> None:
    """A folder that another conversion has not begun is somebody's, perhaps the source itself."""
    begun = any((partial / name).exists() for name in (JOURNAL_FILE, ".lock"))
    foreign = partial.is_dir() and any(partial.iterdir()) and not begun
    if foreign or partial.resolve() == source.path:
        raise UsageError("store.target_exists", path=str(partial))


class _Writer:
    """Writes the files that the journal does not have yet."""

    def __init__(
        self,
        partial: Path,
        layout: StoreLayout,
        tensors: Mapping[str, Tensor],
        journal: Journal,
        threads: int,
        progress: ProgressCallback,
        done: int,
        total: int,
    ) -> None:
        self._partial = partial
        self._layout = layout
        self._tensors = tensors
        self._journal = journal
        self._threads = threads
        self._progress = progress
        self._done = done
        self._total = total

    def write(self, files: list[StoreFile]) -> None:
        with ThreadPoolExecutor(self._threads) as pool:
            for file in files:
                if file.name in self._journal.records:
                    continue
                with ShardWriter(self._partial / file.name, file.specs) as writer:
                    for spec in file.specs:
                        for piece in self._pieces(spec, file.layer, pool):
                            writer.write(piece)
                            self._done += piece.nbytes
                            self._progress(LoadProgress(min(self._done, self._total), self._total))
                assert writer.record is not None
                self._journal.add(file.name, writer.record)
        self._progress(LoadProgress(self._total, self._total))

    def _pieces(
        self, spec: TensorSpec, layer: int | None, pool: ThreadPoolExecutor
    ) -> Iterator[Tensor]:
        """The bytes of one tensor of the store, in pieces."""
        if layer is not None and spec.name == layer_prefix(layer) + EXPERTS:
            yield from _pack_in_order(self._experts(layer), self._layout.expert_layout, pool)
            return
        tensor = self._tensors[spec.name]
        if spec.dtype != torch.uint8:
            yield tensor.to(spec.dtype).contiguous()
            return
        head = spec.name not in self._attention_names(layer)
        precision = self._layout.precision
        form = precision.head_form if head else precision.attention_form
        # Row blocks are independent: slices of rows keep the memory small.
        rows = max(16, 2**22 // tensor.shape[1] // 16 * 16)
        for start in range(0, tensor.shape[0], rows):
            with _named_source(spec.name):
                yield pack_matrix(tensor[start : start + rows], form)

    def _attention_names(self, layer: int | None) -> frozenset[str]:
        if layer is None:
            return frozenset()
        prefix = f"{layer_prefix(layer)}self_attn."
        return frozenset(name for name in self._tensors if name.startswith(prefix))

    def _experts(self, layer: int) -> Iterator[tuple[str, SwigluWeights]]:
        """Name and weights of each block of a layer: the routed experts, then the shared."""
        config, prefix = self._layout.config, f"{layer_prefix(layer)}mlp."
        if not config.is_moe:
            yield prefix, self._swiglu(prefix)
            return
        for number in range(config.num_experts):
            yield f"{prefix}experts.{number}.", self._swiglu(f"{prefix}experts.{number}.")
        if config.num_shared_experts:
            name = f"{prefix}shared_experts."
            for part in split_shared(self._swiglu(name), config.num_shared_experts):
                yield name, part

    def _swiglu(self, prefix: str) -> SwigluWeights:
        return SwigluWeights(*(self._tensors[f"{prefix}{name}.weight"] for name in PROJECTIONS))


def _pack_in_order(
    experts: Iterator[tuple[str, SwigluWeights]], layout: ExpertLayout, pool: ThreadPoolExecutor
) -> Iterator[Tensor]:
    """Blocks in the order of the experts, a few of them in the making at a time."""

    def pack(name: str, expert: SwigluWeights) -> Tensor:
        with _named_source(name):
            return layout.pack(expert)

    waiting: list[Future[Tensor]] = []
    window = pool._max_workers + 1
    while True:
        fresh = islice(experts, window - len(waiting))
        waiting += [pool.submit(pack, name, expert) for name, expert in fresh]
        if not waiting:
            return
        yield waiting.pop(0).result()


def _planned_files(layout: StoreLayout) -> list[StoreFile]:
    try:
        return list(layout.files())
    except ValueError as error:
        raise UsageError("store.width", detail=str(error)) from None


def _finish(
    partial: Path,
    source: ModelDirectory,
    journal: Journal,
    precision: StorePrecision,
    source_name: str | None,
) -> Manifest:
    """Take over the small files, write the manifest, and read everything back."""
    records: dict[str, FileRecord] = dict(journal.records)
    for pattern in COPIED_PATTERNS:
        for name in source.names(pattern):
            shutil.copyfile(source.file(name), partial / name)
            records[name] = hash_file(partial / name)
    about = {"name": source_name or source.display_name}
    if source.revision:
        about["revision"] = source.revision
    manifest = Manifest(precision, about, records)
    (partial / MANIFEST_FILE).write_text(manifest.to_json() + "\n", encoding="utf-8")
    verify_store(partial)
    return manifest


def _check_disk(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise ResourceError(
            "store.disk_full", path=str(folder), needed_bytes=needed, free_bytes=free
        )


@contextmanager
def _sole_converter(partial: Path) -> Iterator[None]:
    try:
        with FileLock(partial / ".lock", timeout=0):
            yield
    except Timeout:
        raise UsageError("store.busy", path=str(partial)) from None


@contextmanager
def _writing(partial: Path, files: list[StoreFile]) -> Iterator[None]:
    """Turns what the file system refuses into errors that say what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            needed = sum(shard_bytes(file.specs) for file in files)
            free = shutil.disk_usage(partial).free
            raise ResourceError(
                "store.disk_full", path=str(partial), needed_bytes=needed, free_bytes=free
            ) from None
        if isinstance(error, PermissionError) or error.errno == errno.EROFS:
            detail = error.strerror or "permission denied"
            raise UsageError("store.not_writable", path=str(partial), detail=detail) from None
        raise


@contextmanager
def _named_source(name: str) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise IntegrityError("checkpoint.not_finite", tensor=name, detail=str(error)) from None
