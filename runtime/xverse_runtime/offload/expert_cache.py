"""Experts on the device: one pool of blocks, and a table for each layer that says which is where.

The pool has three parts: slots, whose experts change; the shared experts of every layer, which
stay; and two staging halves, for experts that are only passing through. `ExpertSlots` decides who
has which slot; here the bytes follow, and the tables that kernels read.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from time import perf_counter

import torch
from torch import Tensor

from xverse_kernels.packing import ExpertBlocks
from xverse_runtime.offload.costs import LinearCost
from xverse_runtime.offload.expert_slots import ExpertSlots
from xverse_runtime.offload.host_experts import HostExperts
from xverse_runtime.offload.policy import ExpertPolicy, Key
from xverse_runtime.offload.transfer import OffloadDevice, Upload

MOST_WISHES = 16  # older ones are forgotten: the experts that were used last are wanted most
ROWS_UNDER_WAY = 64  # changed tables that can be on their way before the host waits


class ExpertCache:
    """The pool and its tables. One upload in the background at a time, so that one that is waited
    for is held up by one expert at most."""

    def __init__(
        self,
        device: OffloadDevice,
        host: HostExperts,
        policy: ExpertPolicy,
        *,
        slots: int,
        staged: int,
        shared: int,
        dtype: torch.dtype,
        floor: int = 0,
    ) -> None:
        """
        Args:
            device: whose memory the pool is.
            host: where experts come from.
            policy: ranks them.
            slots: of all layers together.
            staged: experts in each staging half.
            shared: shared experts of a layer.
            dtype: of the activations.
            floor: slots that a layer keeps.

        Raises:
            torch.OutOfMemoryError: the pool does not fit.
        """
        layers, experts, layout = host.layers, host.experts, host.layout
        self.device = device
        self.host = host
        self.dtype = dtype
        self.staged = staged
        self.slots = ExpertSlots(layers, experts, slots, policy, floor=floor)
        self._first_staged = slots + layers * shared
        rows = self._first_staged + 2 * staged
        self.pool = device.empty(rows, layout.block_bytes, dtype=torch.uint8)
        self._shared_rows = [
            list(range(slots + layer * shared, slots + (layer + 1) * shared))
            for layer in range(layers)
        ]
        self._tables = device.empty(layers, experts + shared, dtype=torch.int32)
        self._rows = TableRows(device, experts + shared)
        self._stale = [True] * layers  # tables that the device has not heard of
        self._wishes: deque[Key] = deque(maxlen=MOST_WISHES)
        self._coming: tuple[Key, Upload] | None = None
        self._began = 0.0  # when it was asked for
        self.on_arrival: Callable[[Upload], None] = lambda _upload: None
        self.uploaded_bytes = 0

    def load(
        self, keys: Iterable[Key], on_loaded: Callable[[int], None] = lambda _bytes: None
    ) -> None:
        """Bring the shared experts of all layers, and others as long as there are free slots.

        Host memory is read through a staging half of its own, so nothing has to be pinned.

        Args:
            keys: experts to begin with, the most wanted first.
            on_loaded: told the bytes of each piece.
        """
        copies = [
            (block, row)
            for layer, rows in enumerate(self._shared_rows)
            for block, row in zip(self.host.shared(layer), rows, strict=True)
        ]
        copies += [(self.host.block(key), slot) for key, slot in self.slots.fill(keys)]
        size = self.host.layout.block_bytes
        buffers = [self.device.host_buffer(self.staged, size, dtype=torch.uint8) for _ in range(2)]
        last: list[Upload | None] = [None, None]
        for turn, first in enumerate(range(0, len(copies), self.staged)):
            some, half = copies[first : first + self.staged], turn % 2
            upload = last[half]
            if upload is not None:
                upload.wait()
            for place, (block, _) in enumerate(some):
                buffers[half][place].copy_(block)
            pieces = [(buffers[half][place], row) for place, (_, row) in enumerate(some)]
            last[half] = upload = self.device.upload(self.pool, pieces)
            on_loaded(upload.nbytes)
        for upload in last:
            if upload is not None:
                upload.wait()

    @property
    def resident_bytes(self) -> int:
        """Of slots and shared experts."""
        return self._first_staged * self.host.layout.block_bytes

    def blocks(self, table: Tensor) -> ExpertBlocks:
        """The pool as the experts of a layer, by a table of the device."""
        return ExpertBlocks(self.pool, self.host.layout, self.dtype, table)

    def table(self, layer: int) -> Tensor:
        """Which row of the pool an expert of the layer is in, on the device: int32 [experts +
        shared]. Brought up to date in the queue of computations; always the same memory."""
        row = self._tables[layer]
        if self._stale[layer]:
            self._rows.send([*self.slots.table(layer), *self._shared_rows[layer]], row)
            self._stale[layer] = False
        return row

    def resident_rows(self, layer: int) -> list[int]:
        """The rows that a computation by `table` may read."""
        return [row for row in self.slots.table(layer) if row >= 0] + self._shared_rows[layer]

    def shared_rows(self, layer: int) -> list[int]:
        return self._shared_rows[layer]

    def staging_row(self, half: int, place: int) -> int:
        return self._first_staged + half * self.staged + place

    def wish(self, keys: Sequence[Key]) -> None:
        """Have experts uploaded when the link is free, the last ones named first."""
        for key in keys:
            if self.host.is_pinned(key[0]):
                self._wishes.append(key)

    @property
    def is_uploading(self) -> bool:
        return self._coming is not None

    def poll(self) -> None:
        """Let an upload that is done become a hit, and begin the next; never waits."""
        if self._coming is not None:
            key, upload = self._coming
            if not upload.is_done():
                return
            self._coming = None
            self.slots.commit(key)
            self._stale[key[0]] = True
            self.uploaded_bytes += upload.nbytes
            self.on_arrival(upload)
        while self._wishes and self._coming is None:
            self._begin(self._wishes.pop())

    def _begin(self, key: Key) -> None:
        if self.slots.table(key[0])[key[1]] >= 0 or self.slots.is_coming(key):
            return
        reservation = self.slots.reserve(key)
        if reservation is None:
            return
        if reservation.evicted is not None:
            self._stale[reservation.evicted[0]] = True
        upload = self.device.upload(self.pool, [(self.host.block(key), reservation.slot)])
        self._coming, self._began = (key, upload), perf_counter()

    def adopt(self, key: Key, staging_row: int) -> None:
        """Give an expert that is in a staging half a slot, if the policy wants it: a copy within
        the device, in the queue of computations."""
        if self.slots.is_coming(key) or self.slots.table(key[0])[key[1]] >= 0:
            return
        reservation = self.slots.reserve(key)
        if reservation is None:
            return
        if reservation.evicted is not None:
            self._stale[reservation.evicted[0]] = True
        if self.device.checks:
            self.device.reading([staging_row])
            self.device.writing([reservation.slot])
        self.pool[reservation.slot].copy_(self.pool[staging_row])
        self.slots.commit(key)
        self._stale[key[0]] = True

    def busy_s(self, link: LinearCost) -> float:
        """How long the upload in the background is still going to take."""
        if self._coming is None:
            return 0.0
        _, upload = self._coming
        return max(0.0, link.seconds(upload.nbytes) - (perf_counter() - self._began))


class TableRows:
    """Small tables on their way to the device, from a ring of host buffers.

    A buffer is written again only when its copy is over: a mark behind every half ring sees to it.
    """

    def __init__(self, device: OffloadDevice, width: int) -> None:
        self._device = device
        self._ring = device.host_buffer(ROWS_UNDER_WAY, width, dtype=torch.int32)
        self._marks = [device.mark(), device.mark()]
        self._next = 0

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
