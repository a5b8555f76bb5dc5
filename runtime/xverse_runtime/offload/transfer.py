"""What expert offload asks of a device: its memory, and two queues of work.

One queue holds computations, with the small copies that belong to them; the other uploads experts.
Everything that is asked for happens later, in the order of its queue, while the host goes on. Three
rules keep the bytes right, and they are kept here rather than by whoever asks:

- An upload begins after all computations that were asked for before it: none of them can still be
  reading the slot that it overwrites. One `at_once` does not wait: the host has seen a mark behind
  everything that reads or writes the rows it goes to.
- A computation reads an uploaded slot only after `OffloadDevice.compute_after`, or when the host
  has seen the upload done.
- The host reads what `to_host` brought only after a mark that was set behind it.

`CudaQueues` is the real one; the tests' fake device raises when one of the rules is broken.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from xverse_runtime.device import free_gpu_bytes
from xverse_runtime.link import pin_pages, unpin_pages
from xverse_runtime.offload.patience import Awaited, Patience, await_computations, await_upload

NOTHING_NAMED = Awaited()
BlockCopy = tuple[Tensor, int]  # a block of the host, and the row of the pool that it goes to


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
        """Whether it wants to hear of `reading` and `writing`."""

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

    def to_host(self, source: Tensor, target: Tensor) -> None:
        """Copy a tensor of the device to a `host_buffer`, in the queue of computations."""

    def to_device(self, source: Tensor, target: Tensor) -> None:
        """Copy a `host_buffer` to the device, in the queue of computations."""

    def mark(self) -> Mark:
        """Behind everything that is in the queue of computations now."""

    def reading(self, rows: Iterable[int]) -> None:
        """What is computed next reads these rows of the pool."""

    def writing(self, rows: Iterable[int]) -> None:
        """What is computed next writes these rows."""

    def upload(self, pool: Tensor, copies: Sequence[BlockCopy], *, at_once: bool = False) -> Upload:
        """Copy blocks into rows of the pool, after all computations so far; ``at_once``: only after
        the uploads so far."""

    def compute_after(self, upload: Upload) -> None:
        """Computations that are asked for from now on wait for an upload."""

    def close(self) -> None:
        """Wait for everything, and give pinned memory back; happens by itself when nobody refers to
        the device any more."""


class CudaQueues:
    """`OffloadDevice` on a CUDA device: the current stream computes, a stream of its own copies."""

    checks = False

    def __init__(self, device: torch.device, patience: Patience | None = None) -> None:
        self._device = device
        self._patience = patience or Patience()
        self._newest: _CudaUpload | None = None
        self._copies = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._pinned: list[Tensor] = []  # kept as long as they are registered
        self._close = weakref.finalize(self, _unregister, self._pinned, device)
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
        buffer = torch.zeros(shape, dtype=dtype)
        try:
            return buffer.pin_memory()
        except RuntimeError:  # the system refuses more: copies are slower then, and as right
            return buffer

    def pin(self, blocks: Tensor) -> bool:
        if not pin_pages(blocks, self._device):
            return False
        self._pinned.append(blocks)
        return True

    def to_host(self, source: Tensor, target: Tensor) -> None:
        target.copy_(source, non_blocking=True)

    def to_device(self, source: Tensor, target: Tensor) -> None:
        target.copy_(source, non_blocking=True)

    def mark(self) -> Mark:
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._device))
        return _CudaMark(event, self._patience, self._newest)

    def reading(self, rows: Iterable[int]) -> None:
        pass

    def writing(self, rows: Iterable[int]) -> None:
        pass

    def upload(self, pool: Tensor, copies: Sequence[BlockCopy], *, at_once: bool = False) -> Upload:
        begun: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        done: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        if not at_once:
            self._copies.wait_stream(torch.cuda.current_stream(self._device))
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


def _unregister(pinned: list[Tensor], device: torch.device) -> None:
    torch.cuda.synchronize(device)
    unpin_pages(pinned)


class _CudaMark:
    def __init__(self, event: Any, patience: Patience, newest: _CudaUpload | None) -> None:
        self._event = event
        self._patience = patience
        self._newest = newest  # the last upload that could be waited for before it

    def wait(self, awaited: Awaited = NOTHING_NAMED) -> None:
        newest = self._newest
        await_computations(
            self._patience, self._event.query, lambda: newest is None or newest.is_done(), awaited
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
