"""Weights from mapped files to a device: through two pinned buffers, so that reading and copying
overlap."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# torch fills a buffer with all its threads at once; threads of our own were slower by half.
BUFFER_BYTES = 64 * 2**20


class Uploader:
    """Copies host tensors to one device, in the order of the current stream after `finish`."""

    def __init__(
        self, device: torch.device, on_loaded: Callable[[int], None] = lambda _bytes: None
    ) -> None:
        """``on_loaded`` is told the bytes of each piece when it is on its way."""
        self.device = device
        self._on_loaded = on_loaded
        self._buffers: list[Tensor] = []
        self._events: list[torch.cuda.Event] = []
        self._turn = 0
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            self._buffers = [
                torch.empty(BUFFER_BYTES, dtype=torch.uint8, pin_memory=True) for _ in range(2)
            ]
            self._events = [
                torch.cuda.Event()  # type: ignore[no-untyped-call]
                for _ in self._buffers
            ]

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
        if not self._buffers:
            out.copy_(raw)
            self._on_loaded(raw.numel())
            return
        # what the target's memory was used for before must be over
        self._stream.wait_stream(torch.cuda.current_stream(self.device))
        for start in range(0, raw.numel(), BUFFER_BYTES):
            piece = raw[start : start + BUFFER_BYTES]
            self._send(piece, out[start : start + piece.numel()])
            self._on_loaded(piece.numel())

    def finish(self) -> None:
        """Let the current stream see everything copied so far."""
        if self._buffers:
            torch.cuda.current_stream(self.device).wait_stream(self._stream)

    def _send(self, piece: Tensor, out: Tensor) -> None:
        turn = self._turn
        self._turn = (turn + 1) % len(self._buffers)
        self._events[turn].synchronize()
        buffer = self._buffers[turn][: piece.numel()]
        buffer.copy_(piece)
        with torch.cuda.stream(self._stream):
            out.copy_(buffer, non_blocking=True)
            out.record_stream(self._stream)
            self._events[turn].record()
