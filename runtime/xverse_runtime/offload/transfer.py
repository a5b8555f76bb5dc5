"""What expert offload asks of a device: its memory, and two queues of work.

One queue holds computations, with the small copies that belong to them; the other uploads experts.
Everything that is asked for happens later, in the order of its queue, while the host goes on. Three
rules keep the bytes right, and they are kept here rather than by whoever asks:

- An upload begins behind a mark that is behind all computations by the rows that it goes to: none
  of them can still be reading what it overwrites.
- A computation reads an uploaded slot only after `OffloadDevice.compute_after`, or when the host
  has seen the upload done.
- The host reads what `to_host` brought only after a mark that was set behind it.

`CudaQueues` is the real one; the tests' fake device raises when one of the rules is broken.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any, Protocol

import torch
from torch import Tensor

from xverse_kernels.backend import KernelBackend
from xverse_runtime.device import free_gpu_bytes
from xverse_runtime.link import pin_pages, unpin_pages
from xverse_runtime.offload.patience import Awaited, Patience, await_computations, await_upload

NOTHING_NAMED = Awaited()
BlockCopy = tuple[Tensor, int]  # a block of the host, and the row of the pool that it goes to
SmallCopies = Sequence[tuple[Tensor, Tensor]]  # few elements, as many of a source as of its target


class Upload(Protocol):
    """Blocks on their way to the device."""

    @property
    def nbytes(self) -> int: ...

    def is_done(self) -> bool:
        """Whether all bytes are there; never waits."""

    def seconds(self) -> float | None:
        """How long the link was at it, once done; ``None`` where that is not known."""

    def wait(self, awaited: Awaited = NOTHING_NAMED) -> None:
        """Let the host wait until it is done.

        Raises:
            DeviceError: ``offload.stuck_upload``: half a minute was not enough.
        """


class Mark(Protocol):
    """A point in the queue of computations."""

    def wait(self, awaited: Awaited = NOTHING_NAMED) -> None:
        """Let the host wait until everything before it has been computed.

        Args:
            awaited: what an error is to name.

        Raises:
            DeviceError: ``offload.stuck_computations`` or ``offload.stuck_upload``: half a minute
                was not enough.
        """


class OffloadDevice(Protocol):
    """See the module."""

    @property
    def device(self) -> torch.device:
        """Where its tensors are."""

    @property
    def checks(self) -> bool:
        """Whether it wants to hear of `reading` and `reading_in_place`."""

    def empty(self, *shape: int, dtype: torch.dtype) -> Tensor:
        """Memory of the device.

        Raises:
            torch.OutOfMemoryError: there is not that much left.
        """

    def free(self, memory: Tensor) -> None:
        """Wait for everything, and give back what `empty` gave, whoever still refers to it."""

    def free_bytes(self) -> int:
        """What `empty` can still give."""

    def host_buffer(self, *shape: int, dtype: torch.dtype) -> Tensor:
        """Zeros on the host, in memory that both queues reach by themselves where possible."""

    def pin(self, blocks: Tensor) -> bool:
        """Let uploads read host memory by themselves; false where the system does not allow it.

        Pages must have been written before: pinning untouched ones would fill them with zeros one
        by one.
        """

    @property
    def reads_in_place(self) -> bool:
        """Whether computations can read what `host_buffer` gave so far where it lies."""

    def to_host(self, copies: SmallCopies) -> None:
        """Copy tensors of the device to (parts of) a `host_buffer` each, to its dtype, in the queue
        of computations."""

    def to_device(self, source: Tensor, target: Tensor) -> None:
        """Copy (a part of) a `host_buffer` to the device, in the queue of computations."""

    def mark(self) -> Mark:
        """Behind everything that is in the queue of computations now."""

    def reading(self, rows: Iterable[int]) -> None:
        """What is computed next reads these rows of the pool."""

    def reading_in_place(self, buffer: Tensor) -> None:
        """What is computed next reads a `host_buffer` where it lies."""

    def upload(
        self, pool: Tensor, copies: Sequence[BlockCopy], *, after: Mark | None = None
    ) -> Upload:
        """Copy blocks into rows of the pool, after the uploads so far and all computations before
        a mark; by default before now."""

    def compute_after(self, upload: Upload) -> None:
        """Computations that are asked for from now on wait for an upload."""

    def close(self) -> None:
        """Wait for everything, and give pinned memory back; happens by itself when nobody refers to
        the device any more."""


class CudaQueues:
    """`OffloadDevice` on a CUDA device: the current stream computes, a stream of its own copies.

    The small copies between computations do not go through a copy engine where kernels can reach
    the host's memory: there they would wait for the expert that it is at, for half a millisecond,
    with one engine for both directions also those to the host.
    """

    checks = False

    def __init__(
        self,
        device: torch.device,
        kernels: KernelBackend | None = None,
        patience: Patience | None = None,
    ) -> None:
        """``kernels``: of that device; without them all copies are the copy engine's."""
        self._device = device
        self._copy_small: Callable[[SmallCopies], None] | None = None
        if kernels is not None and kernels.reaches_host_memory:
            self._copy_small = kernels.copy_small
        self._patience = patience or Patience()
        self._newest: _CudaUpload | None = None
        self._copies = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._pinned: list[Tensor] = []  # kept as long as they are registered
        self._close = weakref.finalize(self, _unregister, self._pinned, device, self._copies)
        self._close.atexit = False  # the driver does it then

    @property
    def device(self) -> torch.device:
        return self._device

    def empty(self, *shape: int, dtype: torch.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=self._device)

    def free(self, memory: Tensor) -> None:
        torch.cuda.synchronize(self._device)
        memory.untyped_storage().resize_(0)
        torch.cuda.empty_cache()

    def free_bytes(self) -> int:
        return free_gpu_bytes(self._device)

    def host_buffer(self, *shape: int, dtype: torch.dtype) -> Tensor:
        try:
            buffer = torch.empty(shape, dtype=dtype, pin_memory=True)
        except RuntimeError:  # the system refuses more: copies are slower then, and as right
            self._copy_small = None
            return torch.zeros(shape, dtype=dtype)
        # torch would have threads of its own do it, beside those that compute
        ctypes.memset(buffer.data_ptr(), 0, buffer.nbytes)
        return buffer

    def pin(self, blocks: Tensor) -> bool:
        if not pin_pages(blocks, self._device):
            return False
        self._pinned.append(blocks)
        return True

    @property
    def reads_in_place(self) -> bool:
        return self._copy_small is not None

    def to_host(self, copies: SmallCopies) -> None:
        if self._copy_small is not None:
            self._copy_small(copies)
            return
        for source, target in copies:
            target.copy_(source.to(target.dtype), non_blocking=True)

    def to_device(self, source: Tensor, target: Tensor) -> None:
        if self._copy_small is not None:
            self._copy_small([(source, target)])
        else:
            target.copy_(source, non_blocking=True)

    def mark(self) -> Mark:
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._device))
        return _CudaMark(event, self._patience, self._newest)

    def reading(self, rows: Iterable[int]) -> None:
        pass

    def reading_in_place(self, buffer: Tensor) -> None:
        pass

    def upload(
        self, pool: Tensor, copies: Sequence[BlockCopy], *, after: Mark | None = None
    ) -> Upload:
        begun: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        done: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        if after is None:
            self._copies.wait_stream(torch.cuda.current_stream(self._device))
        else:
            assert isinstance(after, _CudaMark)
            self._copies.wait_event(after.event)
        with torch.cuda.stream(self._copies):
            begun.record()
            for block, row in copies:
                pool[row].copy_(block, non_blocking=True)
            done.record()
        nbytes = sum(block.nbytes for block, _ in copies)
        self._newest = _CudaUpload(begun, done, nbytes, self._patience)
        return self._newest

    def compute_after(self, upload: Upload) -> None:
        assert isinstance(upload, _CudaUpload)
        torch.cuda.current_stream(self._device).wait_event(upload.done)

    def close(self) -> None:
        self._close()


def _unregister(pinned: list[Tensor], device: torch.device, copies: Any) -> None:
    """Only copies read what was pinned. All the device's work is not waited for: this runs wherever
    the last reference goes, and another engine's graph may be on its way to being captured."""
    with suppress(RuntimeError):  # of a device that failed, as its computations have told
        copies.synchronize()
    unpin_pages(pinned, device)


class _CudaMark:
    def __init__(self, event: Any, patience: Patience, newest: _CudaUpload | None) -> None:
        self.event = event
        self._patience = patience
        self._newest = newest  # the last upload that could be waited for before it

    def wait(self, awaited: Awaited = NOTHING_NAMED) -> None:
        newest = self._newest
        await_computations(
            self._patience, self.event.query, lambda: newest is None or newest.is_done(), awaited
        )


class _CudaUpload:
    def __init__(self, begun: Any, done: Any, nbytes: int, patience: Patience) -> None:
        self._begun = begun
        self._patience = patience
        self.done = done
        self.nbytes = nbytes

    def is_done(self) -> bool:
        return bool(self.done.query())

    def seconds(self) -> float | None:
        return float(self._begun.elapsed_time(self.done)) / 1000

    def wait(self, awaited: Awaited = NOTHING_NAMED) -> None:
        await_upload(self._patience, self.is_done, awaited)
