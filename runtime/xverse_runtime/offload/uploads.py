"""Uploads that nothing waits for: experts that are to become hits, and one that is sent a layer
ahead.

One is under way at a time, so that one that is waited for is held up by one expert at most. Pinned
blocks are read where they lie; of the others a thread fills a buffer first.
"""

from __future__ import annotations

from concurrent.futures import Future, wait
from time import perf_counter

from torch import Tensor

from xverse_runtime.offload.buffer_filling import begin_filling
from xverse_runtime.offload.coordinator import Coordinator
from xverse_runtime.offload.costs import LinearCost
from xverse_runtime.offload.expert_cache import ExpertCache
from xverse_runtime.offload.policy import Key
from xverse_runtime.offload.transfer import Mark, Upload


class Uploads:
    """What `Coordinator` wishes for, on its way to `ExpertCache`. Nothing here ever waits, but for
    `settle`."""

    def __init__(self, cache: ExpertCache, rules: Coordinator) -> None:
        self._cache = cache
        self._rules = rules
        self._coming: Upload | None = None  # the one in the background
        self._ahead: Upload | None = None  # the one for the next layer
        self._began = 0.0  # when the one under way was asked for
        self._filling: tuple[Future[None], int] | None = None  # what comes next, and its slot
        self._buffer: Tensor | None = None  # of the host, for what is not pinned

    def poll_ahead(self) -> None:
        """Let the expert that was sent ahead count if it has come."""
        if self._ahead is not None and self._ahead.is_done():
            self._ahead = None
            self._rules.prefetch.arrived()

    def send_ahead(self, layer_s: float, after: Mark, busy_s: float = 0.0) -> Upload | None:
        """Begin to copy what the next layer is expected to choose, if the link is idle.

        Args:
            layer_s: from one layer's choice to the next.
            after: behind all that computed by the place it goes to; the host has seen it.
            busy_s: how long the link is still busy with critical copies.

        Returns:
            What was begun.
        """
        rules, cache = self._rules, self._cache
        if self._ahead is not None or not rules.prefetch.is_wanted:
            return None  # before anything is asked of the device
        if self._coming is not None and not self._coming.is_done():
            return None
        key = rules.begin_prefetch(layer_s)
        if key is None:
            return None
        copies = [(cache.host.block(key), cache.prefetch_row(key[0]))]
        try:
            self._ahead = cache.device.upload(cache.pool, copies, after=after)
        except BaseException:
            rules.prefetch.abandoned()
            raise
        self._began = perf_counter() + busy_s
        return self._ahead

    @property
    def has_next(self) -> bool:
        """Whether `poll` may begin an upload."""
        return self._filling is not None or self._rules.has_wishes

    def poll(self, after: Mark | None) -> Upload | None:
        """Let an upload in the background that is done become a hit, and begin the next if nothing
        is to be sent ahead.

        Args:
            after: behind all computations by experts so far; ``None``: none is to begin.

        Returns:
            What has come.
        """
        come = None
        if self._coming is not None:
            if not self._coming.is_done():
                return None
            come, self._coming = self._coming, None
            self._cache.has_changed(self._rules.arrived())
        if self._ahead is None and after is not None:
            self._begin(after)
        return come

    def _begin(self, after: Mark) -> None:
        if self._filling is not None:
            filled, slot = self._filling
            if filled.done():
                filled.result()
                self._filling = None
                assert self._buffer is not None
                self._upload(self._buffer, slot, after)
            return
        begun = self._rules.begin_upload()
        if begun is None:
            return
        key, reservation = begun
        self._cache.has_left(reservation)
        host = self._cache.host
        block = host.block(key)
        if host.is_pinned(key[0]):
            self._upload(block, reservation.slot, after)
            return
        try:
            if self._buffer is None:
                self._buffer = self._cache.device.host_buffer(block.numel(), dtype=block.dtype)
            self._filling = begin_filling(self._buffer, block), reservation.slot
        except BaseException:
            self._rules.abandoned()
            raise

    def _upload(self, block: Tensor, slot: int, after: Mark) -> None:
        cache = self._cache
        copies = [(block, cache.rows.of_slot(slot))]
        try:
            self._coming = cache.device.upload(cache.pool, copies, after=after)
        except BaseException:
            self._rules.abandoned()
            raise
        self._began = perf_counter()

    def awaited_row(self, key: Key) -> int:
        """Where an expert is, or is going to be for computations from now on."""
        cache, ahead = self._cache, self._rules.prefetch
        if ahead.coming == key or ahead.is_there(key):
            if ahead.coming == key:
                assert self._ahead is not None
                cache.device.compute_after(self._ahead)
            return cache.prefetch_row(key[0])
        if cache.slots.is_coming(key):
            assert self._coming is not None
            cache.device.compute_after(self._coming)
        return cache.rows.of_slot(cache.slots.slot_of(key))

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

    def settle(self) -> None:
        """Wait until nothing is on its way any more."""
        rules = self._rules
        if self._ahead is not None:
            self._ahead.wait()
            self._ahead = None
            rules.prefetch.arrived()
        rules.prefetch.forget()
        if self._coming is not None:
            self._coming.wait()
            self._coming = None
            self._cache.has_changed(rules.arrived())
        if self._filling is not None:
            filled, _ = self._filling
            wait([filled])
            self._filling = None
            rules.abandoned()
