"""Whole layers through the staging halves, for prompts: while the experts of one group compute, the
next group's cross the link."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

import torch
from torch import Tensor

from xverse_runtime.offload.expert_cache import ExpertCache
from xverse_runtime.offload.patience import Awaited
from xverse_runtime.offload.policy import Key
from xverse_runtime.offload.transfer import Upload


class Group(NamedTuple):
    """Some experts of a layer, all of them on the device once ``upload`` is done."""

    layer: int
    number: int
    rows: dict[int, int]  # expert: row of the pool
    passing: dict[int, int]  # of these, the ones that are only in a staging half
    upload: Upload | None  # None where all of them have slots


class LayerStream:
    """Experts in groups of fixed numbers, whatever is cached: so sums come in the same order.

    What is resident must stay so until it was computed: slots may only change while groups are
    taken and released if what is `still_needed` is left alone.
    """

    def __init__(self, cache: ExpertCache) -> None:
        self._cache = cache
        experts = cache.host.experts
        staged = cache.staged or experts  # where everything has a slot
        self.groups = [
            range(first, min(first + staged, experts)) for first in range(0, experts, staged)
        ]
        self._begun: deque[Group] = deque()
        self._half = 0
        self._filling: list[Tensor] = []  # host buffers of either half, for what is not pinned
        self._last: list[Upload | None] = [None, None]
        self._unmeasured: deque[Upload] = deque()
        self.uploaded_bytes = 0
        self.link_s = 0.0  # of uploads that are over

    def take(self, layer: int, number: int) -> Group:
        """The next group, whose computation may be asked for now: it waits for the upload.

        Groups are taken in order; `forget` comes before another order begins.
        """
        if not self._begun:
            self._begin(layer, number)
            self._begin_after(self._begun[-1])
        group = self._begun[0]
        assert group[:2] == (layer, number)
        if group.upload is not None:
            self._cache.device.compute_after(group.upload)
        return group

    def release(self) -> None:
        """The computation of the group taken last has been asked for: its half may be filled
        again, behind it."""
        self._measure()
        newest = self._begun[-1]
        self._begun.popleft()
        if len(self._begun) < 2:
            self._begin_after(newest)

    def forget(self) -> None:
        """Drop what was begun, after it is over."""
        for group in self._begun:
            if group.upload is not None:
                group.upload.wait(Awaited(group.layer, tuple(group.passing)))
        self._measure()
        self._begun.clear()
        self._last = [None, None]

    def _measure(self) -> None:
        while self._unmeasured and self._unmeasured[0].is_done():
            self.link_s += self._unmeasured.popleft().seconds() or 0.0

    def still_needed(self, layer: int, number: int) -> list[Key]:
        """Experts that have slots and that groups after this one are going to use there."""
        slots = self._cache.slots
        later = [one for group in self.groups[number + 1 :] for one in group]
        keys = [(layer, expert) for expert in later if slots.table(layer)[expert] >= 0]
        for following in range(layer + 1, self._cache.host.layers):
            table = slots.table(following)
            keys += [(following, expert) for expert, slot in enumerate(table) if slot >= 0]
        return keys

    def _begin_after(self, group: Group) -> None:
        if group.number + 1 < len(self.groups):
            self._begin(group.layer, group.number + 1)
        elif group.layer + 1 < self._cache.host.layers:
            self._begin(group.layer + 1, 0)

    def _begin(self, layer: int, number: int) -> None:
        cache, half = self._cache, self._half
        resident = cache.slot_rows(layer)
        experts = self.groups[number]
        passing = {
            expert: cache.rows.of_place(half, place)
            for place, expert in enumerate(one for one in experts if resident[one] < 0)
        }
        rows = {expert: passing.get(expert, resident[expert]) for expert in experts}
        upload = None
        if passing:
            blocks = [cache.host.block((layer, expert)) for expert in passing]
            if not cache.host.is_pinned(layer):
                blocks = self._fill(blocks, half, layer)
            upload = cache.device.upload(
                cache.pool, list(zip(blocks, passing.values(), strict=True))
            )
            self._last[half] = upload
            self._unmeasured.append(upload)
            self._half = 1 - half
            self.uploaded_bytes += upload.nbytes
        self._begun.append(Group(layer, number, rows, passing, upload))

    def _fill(self, blocks: list[Tensor], half: int, layer: int) -> list[Tensor]:
        """The blocks in a host buffer that uploads can read, once its last upload is over."""
        if not self._filling:
            size = self._cache.host.layout.block_bytes
            self._filling = [
                self._cache.device.host_buffer(self._cache.staged, size, dtype=torch.uint8)
                for _ in range(2)
            ]
        last = self._last[half]
        if last is not None:
            last.wait(Awaited(layer))
        for place, block in enumerate(blocks):
            self._filling[half][place].copy_(block)
        return list(self._filling[half][: len(blocks)])
