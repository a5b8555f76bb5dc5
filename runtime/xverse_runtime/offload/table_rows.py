"""The small tables that kernels read, on their way to the device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from xverse_runtime.offload.transfer import OffloadDevice

ROWS_UNDER_WAY = 64  # changed tables that can be on their way before the host waits
ALIGNED = 4  # numbers of 32 bits


def aligned(width: int) -> int:
    """Numbers from one row to the next, so that all begin at multiples of 16 bytes, as kernels want
    it."""
    return -(-width // ALIGNED) * ALIGNED


class TableRows:
    """Small tables on their way to the device, from a ring of host buffers.

    A buffer is written again only when its copy is over: a mark behind every half ring sees to it.
    """

    def __init__(self, device: OffloadDevice, width: int) -> None:
        self._width = width
        self._device = device
        ring = device.host_buffer(ROWS_UNDER_WAY, aligned(width), dtype=torch.int32)
        self._ring = [row[:width] for row in ring]
        self._marks = [device.mark(), device.mark()]
        self._next = 0

    def send_some(self, rows: Mapping[int, int], target: Tensor) -> None:
        """The same for experts that have rows; all others have none."""
        table = [-1] * self._width
        for expert, row in rows.items():
            table[expert] = row
        self.send(table, target)

    def send(self, table: Sequence[int], target: Tensor) -> None:
        """Copy numbers to int32 [width] of the device, in the queue of computations."""
        half = ROWS_UNDER_WAY // 2
        if self._next % half == 0:
            self._marks[self._next // half - 1] = self._device.mark()
            self._marks[self._next // half].wait()
        row = self._ring[self._next]
        row.copy_(torch.tensor(table, dtype=torch.int32))
        self._device.to_device(row, target)
        self._next = (self._next + 1) % ROWS_UNDER_WAY
