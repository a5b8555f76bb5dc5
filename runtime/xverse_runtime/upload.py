"""Weights from mapped files to a device: several threads read into pinned buffers, from which the
device copies, so that reading and copying overlap."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

BUFFER_BYTES = 16 * 2**20
THREADS = 4  # one copies at about a quarter of what a PCIe 5 link takes


class Uploader:
    """Copies host tensors to one device, in the order of the current stream after `finish`."""

    def __init__(
        self, device: torch.device, on_loaded: Callable[[int], None] = lambda _bytes: None
    ) -> None:
        """``on_loaded`` is told the bytes of each piece when it is on its way."""
        self.device = device
        self._on_loaded = on_loaded
        self._lanes: list[_Lane] = []
        self._turn = 0
        if device.type == "cuda":
            self._lanes = [_Lane(device) for _ in range(THREADS)]

    def to_device(self, source: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """A copy of ``source`` on the device, converted there."""
        target = torch.empty(source.shape, dtype=source.dtype, device=self.device)
        self.copy(source, target)
        if dtype is None or dtype == source.dtype:
            return target
        self.finish()
        return target.to(dtype)

    def copy(self, source: Tensor, target: Tensor) -> None:
        """Copy to a contiguous tensor of the device with the same dtype and number of elements.

        The target may be used after `finish`.
        """
        raw = source.contiguous().view(-1).view(torch.uint8)
        out = target.view(-1).view(torch.uint8)
        if not self._lanes:
            out.copy_(raw)
            self._on_loaded(raw.numel())
            return
        for lane in self._lanes:  # what the target's memory was used for before must be over
            lane.stream.wait_stream(torch.cuda.current_stream(self.device))
        for start in range(0, raw.numel(), BUFFER_BYTES):
            piece = raw[start : start + BUFFER_BYTES]
            lane = self._lanes[self._turn % len(self._lanes)]
            self._turn += 1
            lane.send(piece, out[start : start + piece.numel()])
            self._on_loaded(piece.numel())

    def finish(self) -> None:
        """Let the current stream see everything copied so far."""
        for lane in self._lanes:
            lane.join(torch.cuda.current_stream(self.device))


class _Lane:
    """A thread with two pinned buffers and a stream."""

    def __init__(self, device: torch.device) -> None:
        self.stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._buffers = [
            torch.empty(BUFFER_BYTES, dtype=torch.uint8, pin_memory=True) for _ in range(2)
        ]
        self._events = [torch.cuda.Event() for _ in self._buffers]  # type: ignore[no-untyped-call]
        self._thread = ThreadPoolExecutor(1)
        self._pending: list[Future[None]] = []
        self._turn = 0

    def send(self, piece: Tensor, out: Tensor) -> None:
        """Copy by way of the next buffer; waits only if both are still under way."""
        turn = self._turn
        self._turn = (turn + 1) % len(self._buffers)
        if len(self._pending) >= len(self._buffers):
            self._pending.pop(0).result()
        self._pending.append(self._thread.submit(self._move, piece, out, turn))

    def join(self, stream: torch.cuda.Stream) -> None:
        """Let a stream wait for everything sent."""
        for future in self._pending:
            future.result()
        self._pending.clear()
        stream.wait_stream(self.stream)

    def _move(self, piece: Tensor, out: Tensor, turn: int) -> None:
        self._events[turn].synchronize()
        buffer = self._buffers[turn][: piece.numel()]
        buffer.copy_(piece)
        with torch.cuda.stream(self.stream):
            out.copy_(buffer, non_blocking=True)
            out.record_stream(self.stream)
            self._events[turn].record()
