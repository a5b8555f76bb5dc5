"""What loading asks of a device: to copy staged bytes there while the host reads on.

`CudaLink` is the real one, `HostLink` copies at once where the device is the host; the tests and
the measurements have one of a set bandwidth.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any, Protocol

import torch
from torch import Tensor


class Copy(Protocol):
    """Bytes on their way."""

    def wait(self) -> None:
        """Let the calling thread wait until they are there: then they may be overwritten here."""


class Link(Protocol):
    """A queue of copies to one device. `send` is called by several threads, the rest by one."""

    @property
    def device(self) -> torch.device: ...

    def pin(self, buffer: Tensor) -> bool:
        """Let copies read host memory by themselves; false where the system does not allow it."""

    def begin(self) -> None:
        """What is sent from now on waits for the computations that were asked for so far: they may
        use the memory that it is sent to."""

    def send(self, staged: Tensor, target: Tensor) -> Copy:
        """Copy a contiguous host tensor to one of the device with the same shape, converting it
        there where the dtypes differ."""

    def finish(self) -> None:
        """Computations from now on see everything that was sent."""

    def close(self) -> None:
        """Wait for everything, and give pinned memory back."""


class _Done:
    def wait(self) -> None:
        pass


class HostLink:
    """`Link` to the host itself."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def pin(self, buffer: Tensor) -> bool:
        return False

    def begin(self) -> None:
        pass

    def send(self, staged: Tensor, target: Tensor) -> Copy:
        target.copy_(staged)
        return _Done()

    def finish(self) -> None:
        pass

    def close(self) -> None:
        pass


class CudaLink:
    """`Link` by a stream of its own."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._pinned: list[Tensor] = []

    def pin(self, buffer: Tensor) -> bool:
        if not pin_pages(buffer, self.device):
            return False
        self._pinned.append(buffer)
        return True

    def begin(self) -> None:
        self._stream.wait_stream(torch.cuda.current_stream(self.device))

    def send(self, staged: Tensor, target: Tensor) -> Copy:
        # threads that wait for it sleep: they are as many as there are cores
        event: Any = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        with torch.cuda.stream(self._stream):
            if staged.dtype != target.dtype or not target.is_contiguous():
                staged = staged.to(self.device, non_blocking=True)
            target.copy_(staged, non_blocking=True)
            event.record()
        return _CudaCopy(event)

    def finish(self) -> None:
        torch.cuda.current_stream(self.device).wait_stream(self._stream)

    def close(self) -> None:
        self._stream.synchronize()
        unpin_pages(self._pinned, self.device)


class _CudaCopy:
    def __init__(self, event: Any) -> None:
        self._event = event

    def wait(self) -> None:
        self._event.synchronize()


def pin_pages(memory: Tensor, device: torch.device) -> bool:
    """Register host memory that exists; false where the system does not allow it.

    torch's own pinned memory would round sizes up to powers of two, and never give them back.

    Args:
        memory: its pages have been written.
        device: whose copies are to read it, and the thread's one meanwhile: the first call on any
            other takes hundreds of megabytes of that one.
    """
    runtime: Any = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    with torch.cuda.device(device):
        if int(runtime.cudaHostRegister(memory.data_ptr(), memory.nbytes, 0)) == 0:
            return True
        # CUDA keeps the error for whoever launches the next kernel: this one is to have it.
        with suppress(RuntimeError):
            torch.zeros(1, device=device)
    return False


def pinned_if_possible(memory: Tensor) -> Tensor:
    """A pinned copy, or the same memory where the system refuses more: copies are slower then, and
    as right."""
    try:
        return memory.pin_memory()
    except RuntimeError:
        return memory


def unpin_pages(pinned: list[Tensor], device: torch.device) -> None:
    """Before the memory goes: what is mapped in its place must not be taken for it."""
    runtime: Any = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    with torch.cuda.device(device):
        for memory in pinned:
            runtime.cudaHostUnregister(memory.data_ptr())
    pinned.clear()


def link_to(device: torch.device) -> Link:
    """The link to a device."""
    return CudaLink(device) if device.type == "cuda" else HostLink(device)
