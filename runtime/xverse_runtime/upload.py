"""Weights from files to a device: threads read pieces into staging buffers of their own, and send
them while they read the next ones."""

from __future__ import annotations

import ctypes
import mmap
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from types import TracebackType

import torch
from torch import Tensor

from xverse_runtime.link import Copy, Link
from xverse_runtime.mapped_files import MappedFiles, fill

# A disk wants several requests at once; of the page cache one thread copies 5 to 20 GB/s, and a
# PCIe 5.0 link takes 55. Pieces that stay in the processor's cache are faster: docs/loading.md.
LEAST_READERS, MOST_READERS = 4, 8
PIECE_BYTES = 4 * 2**20
BUFFERS = 2  # of a reader: one is read into while the other one is sent
MOST_WAITING = 256  # pieces: the reader's next one is there when it looks for it
PATIENCE = 0.1  # seconds between two looks at what has been sent


class Uploader:
    """Copies host tensors to one device; use as a context, which ends with all copies over.

    Everything is copied when `finish` has returned, and may be used by what is computed then.
    """

    def __init__(
        self,
        link: Link,
        files: MappedFiles | None = None,
        on_loaded: Callable[[int], None] = lambda _bytes: None,
        *,
        readers: int | None = None,
        piece_bytes: int = PIECE_BYTES,
    ) -> None:
        """
        Args:
            link: to the device.
            files: what the tensors are parts of; others are read where they lie.
            on_loaded: told, by the calling thread, the bytes that are on their way or there.
            readers: threads; by default as many as there are cores, 4 to 8.
            piece_bytes: of a staging buffer, of which each thread has two.
        """
        self.device = link.device
        self._link = link
        self._files = files or MappedFiles()
        self._on_loaded = on_loaded
        self._piece_bytes = piece_bytes
        self._readers = readers or reader_threads()
        self._threads: list[threading.Thread] = []
        lock = threading.Lock()
        self._work = threading.Condition(lock)  # readers wait for it
        self._progress = threading.Condition(lock)  # the caller waits for it
        self._waiting: deque[tuple[Tensor, Tensor]] = deque()
        self._reading = 0  # readers that have begun and not ended
        self._unsent = 0  # pieces, waiting or in the hands of a reader
        self._sent_bytes = 0  # that nobody has been told of
        self._error: BaseException | None = None
        self._closed = False
        self._pinning = threading.Lock()

    def __enter__(self) -> Uploader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._work:
            self._closed = True
            self._waiting.clear()
            self._work.notify_all()
        try:
            self._join()
        finally:
            self._link.close()
            # It holds the frames that hold this, and with them all that was loaded.
            self._error = None

    def _join(self) -> None:
        """Wait for the readers, also where Ctrl-C is pressed once more: they end with the pieces
        that they have, and what they send from must stay pinned until then."""
        interrupt: KeyboardInterrupt | None = None
        while True:
            try:
                with self._progress:
                    self._progress.wait_for(lambda: self._reading == 0)
                for thread in self._threads:
                    thread.join()
                break
            except KeyboardInterrupt as error:  # a thread whose join breaks off may seem to be over
                interrupt = error
        if interrupt is not None:
            raise interrupt

    def to_device(self, source: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """A copy of ``source`` on the device, converted there; to be used after `finish`."""
        target = torch.empty(source.shape, dtype=dtype or source.dtype, device=self.device)
        self.copy(source, target)
        return target

    def copy(self, source: Tensor, target: Tensor) -> None:
        """Have a tensor copied to one of the device with the same number of elements.

        Args:
            source: on the host; kept as it is until `finish`.
            target: of any dtype; each of its parts along the first dimension is contiguous.

        Raises:
            IntegrityError: ``checkpoint.corrupt``: a file could not be read, now or before.
        """
        self._link.begin()
        for piece, place in self._pieces(source.contiguous(), target):
            self._start()
            with self._progress:
                self._await(lambda: len(self._waiting) < MOST_WAITING)
                self._waiting.append((piece, place))
                self._unsent += 1
                self._work.notify()
            self._report()

    def finish(self) -> None:
        """Wait until everything is sent; what is computed from now on sees it.

        Raises:
            IntegrityError: as `copy`.
        """
        done = False
        while not done:
            with self._progress:
                done = self._await(lambda: self._unsent == 0, PATIENCE)
            self._report()
        self._link.finish()

    def _pieces(self, source: Tensor, target: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        if target.is_contiguous():
            source, target = source.view(-1), target.view(-1)
        else:
            source = source.view(target.shape)
        if not source.numel():
            return
        step = self._piece_bytes // source[0].nbytes
        assert step, "a part of a target must fit into a buffer"
        for start in range(0, source.shape[0], step):
            yield source[start : start + step], target[start : start + step]

    def _await(self, ready: Callable[[], bool], patience: float | None = None) -> bool:
        """Wait for the readers; raises what one of them met."""
        reached = self._progress.wait_for(lambda: self._error is not None or ready(), patience)
        if self._error is not None:
            raise self._error
        return reached

    def _report(self) -> None:
        with self._progress:
            sent, self._sent_bytes = self._sent_bytes, 0
        if sent:
            self._on_loaded(sent)

    def _start(self) -> None:
        """One more reader, as long as there is more to do than there are readers."""
        if len(self._threads) < self._readers and self._unsent >= len(self._threads):
            thread = threading.Thread(target=self._run_reader, name="loading", daemon=True)
            self._threads.append(thread)
            thread.start()

    def _run_reader(self) -> None:
        with self._progress:
            self._reading += 1
        try:
            self._read()
        finally:
            with self._progress:
                self._reading -= 1
                self._progress.notify()

    @torch.inference_mode()
    def _read(self) -> None:
        buffers: list[Tensor] = []
        under_way: list[Copy | None] = [None] * BUFFERS
        turn = 0
        try:
            while (work := self._next()) is not None:
                if turn == len(buffers):
                    buffers.append(self._buffer())
                last = under_way[turn]
                if last is not None:
                    last.wait()
                source, target = work
                fill(buffers[turn], source, self._files.region(source))
                raw = buffers[turn][: source.nbytes]
                staged = raw.view(source.dtype).view(source.shape)
                under_way[turn] = self._link.send(staged, target)
                turn = (turn + 1) % BUFFERS
                self._sent(source.nbytes)
        except BaseException as error:
            with self._progress:
                self._error = self._error or error
                self._progress.notify()

    def _next(self) -> tuple[Tensor, Tensor] | None:
        with self._work:
            self._work.wait_for(lambda: self._closed or bool(self._waiting))
            if self._closed:
                return None
            if len(self._waiting) == MOST_WAITING:
                self._progress.notify()
            return self._waiting.popleft()

    def _sent(self, nbytes: int) -> None:
        with self._progress:
            self._unsent -= 1
            self._sent_bytes += nbytes
            if self._unsent == 0:
                self._progress.notify()

    def _buffer(self) -> Tensor:
        """Pinned, or as it is where the system refuses: copies are slower then, and as right."""
        # whole pages of its own: reads into them are faster by a fifth, and they go back at once
        buffer = torch.frombuffer(mmap.mmap(-1, self._piece_bytes), dtype=torch.uint8)
        # Pages that exist can be pinned at once, not one by one. Not by torch, which would have
        # threads of its own for every reader.
        ctypes.memset(buffer.data_ptr(), 0, buffer.nbytes)
        with self._pinning:
            self._link.pin(buffer)
        return buffer


def reader_threads() -> int:
    """As many as help."""
    return max(LEAST_READERS, min(MOST_READERS, os.cpu_count() or 1))
