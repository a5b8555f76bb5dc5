"""Experts on the device: one pool of blocks, and a table for each layer that says which is where.

The pool has three parts: slots, whose experts change; the shared experts of every layer, which
stay; and two staging halves, for experts that are only passing through. `Coordinator` decides who
gets which slot; here the bytes follow, and the tables that kernels read.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import cache
from time import perf_counter

import torch
from torch import Tensor

from xverse_kernels.packing import ExpertBlocks
from xverse_runtime.host_reader import Copies, copy_each
from xverse_runtime.offload.coordinator import Coordinator
from xverse_runtime.offload.costs import LinearCost
from xverse_runtime.offload.expert_slots import ExpertSlots, Reservation
from xverse_runtime.offload.host_experts import HostExperts
from xverse_runtime.offload.policy import Key
from xverse_runtime.offload.transfer import OffloadDevice, Upload

ALIGNED = 4  # numbers of 32 bits
LOADED_AT_ONCE = 8  # experts, where there is no staging
ROWS_UNDER_WAY = 64  # changed tables that can be on their way before the host waits


class ExpertCache:
    """The pool and its tables. One upload in the background at a time, so that one that is waited
    for is held up by one expert at most."""

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
        self._coming: Upload | None = None  # the one in the background
        self._began = 0.0  # when it was asked for
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
        if self.is_here:
            self.device.free(self.pool)
        self.pool = self.pool[:0]
        if self.staged == 0 and slots < self.slots.slots:
            # Where everything had a slot, prompts went through whole layers: sums keep that order.
            self.staged = rules.most_now = self.host.experts
        self.slots.resize(slots)

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
        self._load([(key, self.slots.slot_of(key)) for key in self.slots.resident])

    def _settle(self, rules: Coordinator) -> None:
        """Nothing is on its way in the background any more."""
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

    def table(self, layer: int) -> Tensor:
        """Which row of the pool an expert of the layer is in, on the device: int32 [experts +
        shared]. Brought up to date in the queue of computations; always the same memory."""
        row = self._tables[layer, : self._width]
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

    def poll(self, rules: Coordinator) -> Upload | None:
        """Let an upload in the background that is done become a hit, and begin the next; never
        waits. What is not pinned goes through a buffer, which a thread fills.

        Returns:
            What has come.
        """
        come = None
        if self._coming is not None:
            if not self._coming.is_done():
                return None
            come, self._coming = self._coming, None
            self._changed(rules.arrived())
        if self._filling is not None:
            filled, row = self._filling
            if filled.done():
                filled.result()
                self._filling = None
                assert self._buffer is not None
                self._upload(self._buffer, row)
            return come
        begun = rules.begin_upload()
        if begun is not None:
            key, reservation = begun
            self._left(reservation)
            block = self.host.block(key)
            if self.host.is_pinned(key[0]):
                self._upload(block, reservation.slot)
            else:
                if self._buffer is None:
                    self._buffer = self.device.host_buffer(block.numel(), dtype=torch.uint8)
                filled = buffer_filler().submit(_fill, self._buffer, block)
                self._filling = filled, reservation.slot
        return come

    def _upload(self, block: Tensor, slot: int) -> None:
        self._coming = self.device.upload(self.pool, [(block, slot)])
        self._began = perf_counter()

    def await_upload(self) -> None:
        """Computations from now on may read what the upload in the background brings."""
        if self._coming is not None:
            self.device.compute_after(self._coming)

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
        """How long the upload in the background is still going to take."""
        if self._coming is None:
            return 0.0
        return max(0.0, link.seconds(self._coming.nbytes) - (perf_counter() - self._began))


@cache
def buffer_filler() -> ThreadPoolExecutor:
    """Reads experts that are not pinned, from the disk perhaps, while the host goes on."""
    return ThreadPoolExecutor(1, thread_name_prefix="experts")


def _fill(buffer: Tensor, block: Tensor) -> None:
    """With one thread, and without Python's lock: torch would bring threads of its own, beside
    those that compute."""
    ctypes.memmove(buffer.data_ptr(), block.data_ptr(), block.nbytes)


class TableRows:
    """Small tables on their way to the device, from a ring of host buffers.

    A buffer is written again only when its copy is over: a mark behind every half ring sees to it.
    """

    def __init__(self, device: OffloadDevice, width: int) -> None:
        self._width = width
        self._device = device
        self._ring = device.host_buffer(ROWS_UNDER_WAY, width, dtype=torch.int32)
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
