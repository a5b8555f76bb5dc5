"""Experts on the device: one pool of blocks, and a table for each layer that says which is where.

The pool has three parts: slots, whose experts change; the shared experts of every layer, which
stay; and two staging halves, for experts that are only passing through: while decoding, one is for
those that cross now, the other for those that were sent a layer ahead. `Coordinator` decides who
gets which slot; here the bytes follow, and the tables that kernels read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import Future, wait
from time import perf_counter

import torch
from torch import Tensor

from xverse_kernels.packing import ExpertBlocks
from xverse_runtime.host_reader import Copies, copy_each
from xverse_runtime.offload.buffer_filling import begin_filling
from xverse_runtime.offload.coordinator import Coordinator
from xverse_runtime.offload.costs import LinearCost
from xverse_runtime.offload.expert_slots import ExpertSlots, Reservation
from xverse_runtime.offload.host_experts import HostExperts
from xverse_runtime.offload.policy import Key
from xverse_runtime.offload.prefetch import PLACES, is_worth_guessing, place_of
from xverse_runtime.offload.table_rows import TableRows
from xverse_runtime.offload.transfer import OffloadDevice, Upload

ALIGNED = 4  # numbers of 32 bits
LOADED_AT_ONCE = 8  # experts, where there is no staging


class ExpertCache:
    """The pool and its tables. One upload at a time that nothing waits for, in the background or a
    layer ahead, so that one that is waited for is held up by one expert at most."""

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
        self.staged = staged
        self._held_all = staged == 0
        self.slots = slots
        self._shared = shared
        self.beside = beside
        self.pool = self._make_pool()
        # Rows begin at multiples of 16 bytes, as kernels want it.
        self._width = experts + shared
        pitch = -(-self._width // ALIGNED) * ALIGNED
        self._tables = device.empty(layers, pitch, dtype=torch.int32)
        self._rows = TableRows(device, experts + shared)
        self._stale = [True] * layers  # tables that the device has not heard of
        self._told: list[int | None] = [None] * layers  # of prefetched experts in them
        self._coming: Upload | None = None  # the one in the background
        self._ahead: Upload | None = None  # the one for the next layer
        self._began = 0.0  # when the one under way was asked for
        self._filling: tuple[Future[None], int] | None = None  # what comes next, and its row
        self._buffer: Tensor | None = None  # of the host, for what is not pinned

    def _make_pool(self) -> Tensor:
        layers, shared, first = self.host.layers, self._shared, self.slots.slots
        self._first_staged = first + layers * shared
        self._shared_rows = [
            list(range(first + layer * shared, first + (layer + 1) * shared))
            for layer in range(layers)
        ]
        rows = self._first_staged + 2 * self.staged
        return self.device.empty(rows, self.host.layout.block_bytes, dtype=torch.uint8)

    @property
    def is_here(self) -> bool:
        """Whether the pool has its memory."""
        return len(self.pool) > 0

    def leave(self, slots: int, rules: Coordinator) -> None:
        """Give the pool back, between two passes; it is to come back with so many slots."""
        self._settle(rules)
        self._give_back()
        self.staged = rules.most_now = self.staged_with(slots)
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

    def _settle(self, rules: Coordinator) -> None:
        """Nothing is on its way any more, in the background or ahead."""
        if self._ahead is not None:
            self._ahead.wait()
            self._ahead = None
            rules.prefetch.arrived()
        rules.prefetch.forget()
        if self._coming is not None:
            self._coming.wait()
            self._coming = None
            self._changed(rules.arrived())
        if self._filling is not None:
            filled, _ = self._filling
            wait([filled])
            self._filling = None
            rules.abandoned()

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
            for layer, rows in enumerate(self._shared_rows)
            for block, row in zip(self.host.shared(layer), rows, strict=True)
        ]
        copies += [(self.host.block(key), slot) for key, slot in placed]
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
        return self._first_staged * self.host.layout.block_bytes

    def blocks(self, table: Tensor) -> ExpertBlocks:
        """The pool as the experts of a layer, by a table of the device."""
        return ExpertBlocks(self.pool, self.host.layout, self.dtype, table)

    def table(self, layer: int, prefetched: int | None = None) -> Tensor:
        """Which row of the pool an expert of the layer is in, on the device: int32 [experts +
        shared]. Brought up to date in the queue of computations; always the same memory.

        Args:
            layer: its number.
            prefetched: an expert that was sent ahead and has come.
        """
        target = self._tables[layer, : self._width]
        if self._stale[layer] or self._told[layer] != prefetched:
            rows = [*self.slots.table(layer), *self._shared_rows[layer]]
            if prefetched is not None:
                rows[prefetched] = self.prefetch_row(layer)
            self._rows.send(rows, target)
            self._stale[layer], self._told[layer] = False, prefetched
        return target

    def resident_rows(self, layer: int) -> list[int]:
        """The rows that a computation by `table` may read."""
        rows = [row for row in self.slots.table(layer) if row >= 0] + self._shared_rows[layer]
        return rows if self._told[layer] is None else [*rows, self.prefetch_row(layer)]

    def shared_rows(self, layer: int) -> list[int]:
        return self._shared_rows[layer]

    def staging_row(self, half: int, place: int) -> int:
        return self._first_staged + half * self.staged + place

    @property
    def can_prefetch(self) -> bool:
        """Whether there is a place for what is sent ahead, and anything to send."""
        is_worth = is_worth_guessing(self.slots.slots, self.host.layers * self.host.experts)
        return is_worth and self.staged >= PLACES and self.host.pinned_layers > 0

    def prefetch_row(self, layer: int) -> int:
        """Where an expert goes that is sent ahead of its layer."""
        return self.staging_row(1, place_of(layer))

    def poll_ahead(self, rules: Coordinator) -> None:
        """Let the expert that was sent ahead count if it has come; never waits."""
        if self._ahead is not None and self._ahead.is_done():
            self._ahead = None
            rules.prefetch.arrived()

    def send_ahead(self, rules: Coordinator, layer_s: float, after_s: float = 0.0) -> Upload | None:
        """Begin to copy what the next layer is expected to choose, if the link is idle.

        Args:
            rules: say what.
            layer_s: from one layer's choice to the next.
            after_s: how long the link is still busy with critical copies.

        Returns:
            What was begun.
        """
        if self._ahead is not None or not rules.prefetch.is_wanted:
            return None  # before anything is asked of the device
        if self._coming is not None and not self._coming.is_done():
            return None
        key = rules.begin_prefetch(layer_s)
        if key is None:
            return None
        copies = [(self.host.block(key), self.prefetch_row(key[0]))]
        try:
            self._ahead = self.device.upload(self.pool, copies, at_once=True)
        except BaseException:
            rules.prefetch.abandoned()
            raise
        self._began = perf_counter() + after_s
        return self._ahead

    def poll(self, rules: Coordinator) -> Upload | None:
        """Let an upload in the background that is done become a hit, and begin the next if nothing
        is to be sent ahead; never waits. What is not pinned goes through a buffer, which a thread
        fills.

        Returns:
            What has come.
        """
        come = None
        if self._coming is not None:
            if not self._coming.is_done():
                return None
            come, self._coming = self._coming, None
            self._changed(rules.arrived())
        if self._ahead is not None:
            return come
        if self._filling is not None:
            filled, row = self._filling
            if filled.done():
                filled.result()
                self._filling = None
                assert self._buffer is not None
                self._upload(self._buffer, row, rules)
            return come
        begun = rules.begin_upload()
        if begun is not None:
            key, reservation = begun
            self._left(reservation)
            block = self.host.block(key)
            if self.host.is_pinned(key[0]):
                self._upload(block, reservation.slot, rules)
            else:
                if self._buffer is None:
                    self._buffer = self.device.host_buffer(block.numel(), dtype=torch.uint8)
                filled = begin_filling(self._buffer, block)
                self._filling = filled, reservation.slot
        return come

    def _upload(self, block: Tensor, slot: int, rules: Coordinator) -> None:
        try:
            self._coming = self.device.upload(self.pool, [(block, slot)])
        except BaseException:
            rules.abandoned()
            raise
        self._began = perf_counter()

    def awaited_row(self, key: Key, rules: Coordinator) -> int:
        """Where an expert is, or is going to be for computations from now on."""
        ahead = rules.prefetch
        if ahead.coming == key or ahead.is_there(key):
            if ahead.coming == key:
                assert self._ahead is not None
                self.device.compute_after(self._ahead)
            return self.prefetch_row(key[0])
        if self.slots.is_coming(key):
            assert self._coming is not None
            self.device.compute_after(self._coming)
        return self.slots.slot_of(key)

    def keep(self, key: Key, staging_row: int, rules: Coordinator) -> None:
        """Give an expert that is in a staging half a slot, if it is wanted: a copy within the
        device, in the queue of computations."""
        reservation = rules.keep(key)
        if reservation is None:
            return
        self._left(reservation)
        self._changed(key)
        if self.device.checks:
            self.device.reading([staging_row])
            self.device.writing([reservation.slot])
        self.pool[reservation.slot].copy_(self.pool[staging_row])

    def _changed(self, key: Key) -> None:
        self._stale[key[0]] = True

    def _left(self, reservation: Reservation) -> None:
        if reservation.evicted is not None:
            self._changed(reservation.evicted)

    @property
    def is_filling(self) -> bool:
        """Whether what comes next in the background is still on the host: for how long nobody
        knows, it may come from the disk."""
        return self._filling is not None

    def busy_s(self, link: LinearCost) -> float:
        """How long the upload that nothing waits for is still going to take."""
        upload = self._ahead or self._coming
        if upload is None:
            return 0.0
        return max(0.0, link.seconds(upload.nbytes) - (perf_counter() - self._began))
