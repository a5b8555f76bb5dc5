"""A store from weight files that arrive one after the other and are removed as soon as possible.

Whoever fetches them does so like this; every step can be killed, and begun again from the top::

    with StreamedConversion(source, output, precision, digests=digests) as conversion:
        conversion.check_room(sizes)
        remove(conversion.offer(present))
        for name in conversion.needed():
            fetch(name)
            remove(conversion.offer([*those_not_removed, name]))
        conversion.finish()
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from types import TracebackType

from torch import Tensor

from xverse_runtime.checkpoint import absent_files, planned_weights, read_weight_file
from xverse_runtime.errors import IntegrityError
from xverse_runtime.model_dir import ModelDirectory
from xverse_runtime.store.arrivals import Arrivals
from xverse_runtime.store.convert import ConversionPlan, _Job
from xverse_runtime.store.journal import Journal
from xverse_runtime.store.manifest import Manifest, StorePrecision
from xverse_runtime.store.place import check_space, refuse_existing, sole_writer, writing
from xverse_runtime.tensors import expected_tensors
from xverse_runtime.types import ProgressCallback


class StreamedConversion:
    """Makes the store that `convert_checkpoint` makes, byte for byte, of weight files that come
    and go.

    A context manager: within it the lock of ``output`` is held. It writes nothing before.

    Args:
        source: the directory with everything but the weight files, as `convert_checkpoint` takes
            it: ``config.json``, the index if there is one, tokenizer files, licence. The weight
            files must come to lie in it too, in the Hub cache as links to its blobs.
        output: must not exist, or be the store that this conversion made before.
        precision: formats of the parts.
        digests: name to SHA-256 of every weight file, in the order they will arrive. A conversion
            that was interrupted goes on only for the same digests. That the files have them is
            for the caller to check.
        source_name: what the source is called; its directory's name when not given.
        damaged: files of the store that this conversion made at ``output``, which are made again
            while the others are kept. From then on it is an interrupted conversion.
        threads: how many experts are packed at a time; ``None`` is one a processor, as far as
            memory should go.
        progress: told the bytes of the store that are written.

    Raises:
        UsageError: ``store.is_source`` or ``store.width``.
        ModelNotFoundError: ``model.no_weights``: ``digests`` has no file that would be read.
        IntegrityError: a source that cannot be read, ``checkpoint.mismatch`` where the index does
            not fit the configuration, ``checkpoint.missing_shards`` where it names files that
            ``digests`` does not.
    """

    already_made: Manifest | None  # of the same store, which stands at ``output``

    def __init__(
        self,
        source: Path,
        output: Path,
        precision: StorePrecision,
        *,
        digests: Mapping[str, str],
        source_name: str | None = None,
        damaged: Collection[str] = (),
        threads: int | None = None,
        progress: ProgressCallback = lambda progress: None,
    ) -> None:
        self._job = _Job.of(source, output, precision, source_name, digests)
        directory, layout = self._job.source, self._job.layout
        self._planned = planned_weights(directory, layout.config, digests)
        self._arrivals = Arrivals.of(layout, self._job.files, self._planned, digests)
        self._damaged = damaged
        self._threads = threads
        self._progress = progress
        self._journal: Journal | None = None
        self._lock = ExitStack()
        self.already_made = None

    def __enter__(self) -> StreamedConversion:
        """Take the lock and look what is done already.

        Raises:
            UsageError: ``store.target_exists``, ``store.busy`` or ``store.not_writable``.
            ResourceError: ``store.disk_full``.
        """
        job = self._job
        if self._damaged:
            with self._writing(), ExitStack() as lock:
                lock.enter_context(sole_writer(job.output))
                self._journal = job.reopen(self._damaged)
                self._lock = lock.pop_all()
            return self
        self.already_made = job.already_made()
        if self.already_made is None:
            refuse_existing(job.output)
            with self._writing(), ExitStack() as lock:
                lock.enter_context(sole_writer(job.output))
                self.already_made = job.already_made()  # by another process, just now
                if self.already_made is None:
                    self._journal = job.begin()
                    self._lock = lock.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._lock.close()  # whatever the caller raised is no affair of the lock's

    @property
    def plan(self) -> ConversionPlan:
        """What there is to do, and what is done."""
        total = self._job.total_bytes
        done = total if self._journal is None else self._journal.done_bytes
        return ConversionPlan(self._job.output, total, done, self.already_made is not None)

    def needed(self) -> list[str]:
        """Weight files, in order, that hold a tensor of a store file that is not written yet."""
        return self._arrivals.needed(self._done())

    def outstanding(self) -> list[str]:
        """What will be `needed`, for showing before the conversion is entered; nothing is written.

        A store that is finished needs nothing.
        """
        job = self._job
        if self._damaged:
            manifest = Manifest.read(ModelDirectory.open(job.output), sizes=False)
            return self._arrivals.needed(job.undamaged(manifest, self._damaged))
        if job.already_made() is not None:
            return []
        return self._arrivals.needed(job.finished())

    def room_needed(self, sizes: Mapping[str, int]) -> int:
        """The most bytes that will lie on the disk at once, beyond what is there now.

        It is so for a caller that offers what is there first, then fetches one file at a time in
        the order of `needed`, offers it and removes what is free. Weight files that are in
        ``source`` already count as there.

        Args:
            sizes: bytes of each file that is `needed`, at least.
        """
        return max(store + weights for store, weights in self._moments(sizes))

    def check_room(self, sizes: Mapping[str, int]) -> None:
        """Whether `room_needed` is there: of one disk, or of two if the store is on another.

        Raises:
            ResourceError: ``store.disk_full``.
        """
        if self.already_made is not None:
            return
        moments, folders = [*self._moments(sizes)], (self._job.partial, self._job.source.path)
        if folders[0].stat().st_dev == folders[1].stat().st_dev:
            check_space(folders[0], max(map(sum, moments)))
            return
        for folder, beyond in zip(folders, zip(*moments, strict=True), strict=True):
            check_space(folder, max(beyond))

    def offer(self, present: Collection[str]) -> list[str]:
        """Write every store file all of whose tensors are in weight files that are present.

        Nothing keeps a weight file open once this returns.

        Args:
            present: names of the weight files in ``source`` that are complete.

        Returns:
            Those of ``present`` that are not needed any more: they can be removed.

        Raises:
            IntegrityError: a weight file that is not there, is damaged or unsafe, lacks a tensor
                that the index promises (``checkpoint.mismatch`` names it), or has values that are
                not finite.
            ResourceError: ``store.disk_full``.
            UsageError: ``store.not_writable``.
        """
        waiting = [name for name in self.needed() if name in present]
        if waiting:
            self._write(waiting)
        needed = self.needed()
        return [name for name in self._arrivals.order if name in present and name not in needed]

    def finish(self) -> Manifest:
        """Read everything back, and give the store its name.

        Raises:
            IntegrityError: ``store.written_wrong``: what is read back is not what was written;
                what it is made from is `needed` again. ``checkpoint.missing_shards``: something
                is still needed.
            UsageError: ``store.target_exists`` or ``store.not_writable``.
            ResourceError: ``store.disk_full``.
        """
        if needed := self.needed():
            path = str(self._job.source.path)
            raise IntegrityError("checkpoint.missing_shards", names=needed, path=path)
        if self.already_made is None:
            assert self._journal is not None, "a conversion is entered first"
            with self._writing():
                self.already_made = self._job.complete(self._journal)
        return self.already_made

    def _write(self, present: list[str]) -> None:
        assert self._journal is not None, "a conversion is entered first"
        tensors: dict[str, Tensor] = {}
        for name in present:
            tensors |= self._read(name)
        ready = self._arrivals.ready(self._done(), present)
        files = [file for file in self._job.files if file.name in ready]
        with self._writing():
            writer = self._job.writer(self._journal, self._threads, self._progress)
            writer.write(files, tensors)

    def _read(self, name: str) -> dict[str, Tensor]:
        config = self._job.layout.config
        wanted = {
            tensor: shape
            for tensor, shape in expected_tensors(config).items()
            if self._planned[tensor] == name
        }
        return read_weight_file(self._job.source, name, wanted, config)

    def _done(self) -> Collection[str]:
        """Names of the store files that are written."""
        if self.already_made is not None:
            return self.already_made.files
        assert self._journal is not None, "a conversion is entered first"
        return self._journal.records

    def _moments(self, sizes: Mapping[str, int]) -> Iterator[tuple[int, int]]:
        """As `Arrivals.moments`, with the small files of the store."""
        if self.already_made is not None:
            return iter([(0, 0)])
        job, needed = self._job, self.needed()
        absent = absent_files(job.source, needed)
        present = [name for name in needed if name not in absent]
        moments = self._arrivals.moments(self._done(), present, sizes)
        return ((store + job.small_bytes, weights) for store, weights in moments)

    def _writing(self) -> AbstractContextManager[None]:
        return writing(self._job.partial, self._job.total_bytes)
