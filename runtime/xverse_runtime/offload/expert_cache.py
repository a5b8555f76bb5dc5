"""Experts on the device: one pool of blocks, and a table for each layer that says which is where.

The pool has three parts: slots, whose experts change; the shared experts of every layer, which
stay; and two staging halves, for experts that are only passing through: while decoding, one is for
those that cross now, the other for those that were sent a layer ahead. `Coordinator` decides who
gets which slot; here are the bytes, and the tables that kernels read; `Uploads` brings what
changes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from xverse_kernels.packing import ExpertBlocks
from xverse_runtime.host_reader import Copies, copy_each
from xverse_runtime.offload.coordinator import Coordinator
from xverse_runtime.offload.expert_slots import ExpertSlots, Reservation
from xverse_runtime.offload.host_experts import HostExperts
from xverse_runtime.offload.policy import Key
from xverse_runtime.offload.pool_rows import PoolRows
from xverse_runtime.offload.prefetch import PLACES, is_worth_guessing, place_of
from xverse_runtime.offload.table_rows import TableRows, aligned
from xverse_runtime.offload.transfer import OffloadDevice, Upload

LOADED_AT_ONCE = 8  # experts, where there is no staging


class ExpertCache:
    """The pool and its tables."""

    def __init__(
        self,
        device: OffloadDevice,
        host: HostExperts,
        slots: ExpertSlots,
        *,
        staged: int,
        shared: int,
        dtype: torch.dtype,
        beside: int = 0,
    ) -> None:
        """
        Args:
            beside: bytes that must be free when the pool is made anew, beside it.
            device: whose memory the pool is.
            host: where experts come from.
            slots: who has which.
            staged: experts in each staging half; 0 where everything has a slot.
            shared: shared experts of a layer.
            dtype: of the activations.

        Raises:
            torch.OutOfMemoryError: the pool does not fit.
        """
        layers, experts = host.layers, host.experts
        self.device = device
        self.host = host
        self.dtype = dtype
        self.staged = staged  # experts in each staging half
        self._held_all = staged == 0
        self.slots = slots
        self._shared = shared
        self.beside = beside
        self.pool = self._make_pool()
        self._width = experts + shared
        self._tables = device.empty(layers, aligned(self._width), dtype=torch.int32)
        self._sent = TableRows(device, self._width)
        self._stale = [True] * layers  # tables that the device has not heard of
        # of prefetched experts in them, with their rows: places change theirs
        self._told: list[tuple[int, int] | None] = [None] * layers

    def _make_pool(self) -> Tensor:
        self.rows = PoolRows(self.slots.slots, self.host.layers, self._shared, self.staged)
        return self.device.empty(self.rows.count, self.host.layout.block_bytes, dtype=torch.uint8)

    @property
    def is_here(self) -> bool:
        """Whether the pool has its memory."""
        return len(self.pool) > 0

    def leave(self, slots: int) -> None:
        """Give the pool back, between two passes, when nothing is on its way any more; it is to
        come back with so many slots."""
        self._give_back()
        self.staged = self.staged_with(slots)
        self.slots.resize(slots)

    def staged_with(self, slots: int) -> int:
        """Experts in each staging half beside so many slots. Where everything had a slot, prompts
        went through whole layers: sums keep that order."""
        if not self._held_all:
            return self.staged
        return self.host.experts if slots < self.host.layers * self.host.experts else 0

    def _give_back(self) -> None:
        if self.is_here:
            self.device.free(self.pool)
        self.pool = self.pool[:0]

    def come_back(self) -> None:
        """Take memory for the pool, and load what has slots: the host has all of it.

        Raises:
            torch.OutOfMemoryError: it does not fit; nothing was taken.
        """
        held = self.device.empty(self.beside, dtype=torch.uint8) if self.beside else None
        try:
            self.pool = self._make_pool()
        finally:
            if held is not None:
                self.device.free(held)
        self._stale = [True] * self.host.layers
        try:
            self._load([(key, self.slots.slot_of(key)) for key in self.slots.resident])
        except BaseException:  # the tables speak of bytes that have not come
            self._give_back()
            raise

    def load(
        self,
        keys: Iterable[Key],
        on_loaded: Callable[[int], None] = lambda _bytes: None,
        *,
        copy: Copies = copy_each,
    ) -> None:
        """Bring the shared experts of all layers, and others as long as there are free slots.

        Host memory is read through a staging half of its own, so nothing has to be pinned.

        Args:
            keys: experts to begin with, the most wanted first.
            on_loaded: told the bytes of each piece.
            copy: fills the staging.

        Raises:
            IntegrityError: ``checkpoint.corrupt``: a file could not be read.
        """
        self._load(self.slots.fill(keys), on_loaded, copy)

    def _load(
        self,
        placed: Iterable[tuple[Key, int]],
        on_loaded: Callable[[int], None] = lambda _bytes: None,
        copy: Copies = copy_each,
    ) -> None:
        copies = [
            (block, row)
            for layer in range(self.host.layers)
            for block, row in zip(self.host.shared(layer), self.shared_rows(layer), strict=True)
        ]
        copies += [(self.host.block(key), self.rows.of_slot(slot)) for key, slot in placed]
        size, at_once = self.host.layout.block_bytes, self.staged or LOADED_AT_ONCE
        buffers = [self.device.host_buffer(at_once, size, dtype=torch.uint8) for _ in range(2)]
        last: list[Upload | None] = [None, None]
        for turn, first in enumerate(range(0, len(copies), at_once)):
            some, half = copies[first : first + at_once], turn % 2
            upload = last[half]
            if upload is not None:
                upload.wait()
            copy((block, buffers[half][place]) for place, (block, _) in enumerate(some))
            pieces = [(buffers[half][place], row) for place, (_, row) in enumerate(some)]
            last[half] = upload = self.device.upload(self.pool, pieces)
            on_loaded(upload.nbytes)
        for upload in last:
            if upload is not None:
                upload.wait()

    @property
    def resident_bytes(self) -> int:
        """Of slots and shared experts."""
        return self.rows.resident * self.host.layout.block_bytes

    def blocks(self, table: Tensor) -> ExpertBlocks:
        """The pool as the experts of a layer, by a table of the device."""
        return ExpertBlocks(self.pool, self.host.layout, self.dtype, table)

    def table(self, layer: int) -> Tensor:
        """Which row of the pool an expert of the layer is in, on the device, as it was last brought
        up to date: int32 [experts + shared], always the same memory."""
        return self._tables[layer, : self._width]

    def update_table(self, layer: int, prefetched: int | None = None) -> None:
        """Bring a table up to date, in the queue of computations.

        Args:
            layer: its number.
            prefetched: an expert that was sent ahead and has come.
        """
        told = None if prefetched is None else (prefetched, self.prefetch_row(layer))
        if not self._stale[layer] and self._told[layer] == told:
            return
        rows = [*self.slot_rows(layer), *self.shared_rows(layer)]
        if told is not None:
            rows[told[0]] = told[1]
        self._sent.send(rows, self.table(layer))
        self._stale[layer], self._told[layer] = False, told

    def slot_rows(self, layer: int) -> list[int]:
        """Of each expert that has a slot the row, else -1."""
        return self.rows.of_slots(self.slots.table(layer))

    def resident_rows(self, layer: int) -> list[int]:
        """The rows that a computation by `table` may read."""
        rows = [row for row in self.slot_rows(layer) if row >= 0] + self.shared_rows(layer)
        told = self._told[layer]
        return rows if told is None else [*rows, told[1]]

    def shared_rows(self, layer: int) -> list[int]:
        return self.rows.of_shared(layer)

    @property
    def can_prefetch(self) -> bool:
        """Whether there is a place for what is sent ahead, and anything to send."""
        is_worth = is_worth_guessing(self.slots.slots, self.host.layers * self.host.experts)
        return is_worth and self.staged >= PLACES and self.host.pinned_layers > 0

    def prefetch_row(self, layer: int) -> int:
        """Where an expert goes that is sent ahead of its layer."""
        return self.rows.of_place(1, place_of(layer))

    def keep(self, key: Key, row: int, rules: Coordinator) -> None:
        """Give an expert that is in a staging half a slot, if it is wanted: its bytes stay where
        they are. The row that becomes the staging half's may still be read by computations that
        were asked for before."""
        reservation = rules.keep(key)
        if reservation is None:
            return
        self.has_left(reservation)
        self.has_changed(key)
        self.rows.exchange(reservation.slot, row)

    def has_changed(self, key: Key) -> None:
        """An expert is a hit now, or none any more."""
        self._stale[key[0]] = True

    def has_left(self, reservation: Reservation) -> None:
        """Whoever had a slot that is reserved."""
        if reservation.evicted is not None:
            self.has_changed(reservation.evicted)
