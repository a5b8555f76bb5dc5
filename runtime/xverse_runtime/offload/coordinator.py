"""What happens to the experts of a decoded layer: the rules, without bytes and without a clock.

When the router has chosen, `look_up`: the GPU begins with what it has. When the choices have come
to the host, `decide`: some misses are computed on the CPU, some cross the link now. Whenever the
link is idle, `begin_upload` names the next expert to copy in the background; `arrived` makes it a
hit. The runtime (`offloaded_experts`) goes through the same steps with tensors; docs/offload.md
tells where it differs.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from xverse_runtime.offload.expert_slots import ExpertSlots
from xverse_runtime.offload.policy import Key
from xverse_runtime.offload.scheduler import MissScheduler, Split

MOST_WISHES = 64  # background copies that wait; the oldest are given up


@dataclass(frozen=True)
class Decision:
    """Of a layer's misses.

    Args:
        split: what is computed on the CPU and what crosses now; tell `MissScheduler.observe`.
        stays: of ``split.now``: those that get a slot; the others are used once, from a buffer.
        awaited: on their way already and there before the CPU would be done, or there since
            `look_up`: the GPU computes them, as what crosses now.
    """

    split: Split
    stays: tuple[Key, ...]
    awaited: tuple[Key, ...]


class Coordinator:
    """Slots, scheduler, and the list of background copies, kept in step."""

    def __init__(
        self,
        slots: ExpertSlots,
        scheduler: MissScheduler,
        *,
        is_pinned: Callable[[Key], bool] = lambda key: True,
        keeps_crossed: bool = True,
    ) -> None:
        """
        Args:
            slots: of the model.
            scheduler: decides about the misses.
            is_pinned: whether the link can read an expert where it lies; others only the CPU can.
            keeps_crossed: whether what crosses while a layer waits may get a slot.
        """
        self.slots = slots
        self.scheduler = scheduler
        self._is_pinned = is_pinned
        self._keeps_crossed = keeps_crossed
        self._wishes: deque[Key] = deque(maxlen=MOST_WISHES)
        self._coming: Key | None = None  # the one background copy under way

    def look_up(
        self,
        layer: int,
        experts: Sequence[int],
        probabilities: Sequence[float] | None,
        top_k: int,
    ) -> list[Key]:
        """The router has chosen the first ``top_k`` of ``experts``; the others were next.

        Returns:
            Those that the GPU does not have, the one that the cache wants most first.
        """
        slots = self.slots
        slots.enter_layer()
        missing = slots.use(layer, experts[:top_k], probabilities)
        for place in range(top_k, len(experts)):
            probability = probabilities[place] if probabilities else 0.0
            slots.policy.on_use((layer, experts[place]), probability, chosen=False)
        return sorted(missing, key=slots.policy.rank, reverse=True)

    def decide(
        self, missing: Sequence[Key], *, link_busy_s: float = 0.0, idle_s: float = 0.0
    ) -> Decision:
        """What to do about a layer's misses.

        Args:
            missing: what `look_up` returned.
            link_busy_s: until the copy that is under way ends.
            idle_s: the link's time between the misses of two layers.
        """
        for key in missing:
            if key in self._wishes:
                self._wishes.remove(key)
        awaited: list[Key] = []
        cpu_only: list[Key] = []
        free: list[Key] = []
        for key in missing:
            if key == self._coming:
                cpu_s = self.scheduler.seconds(len(missing), 0)
                (awaited if link_busy_s <= cpu_s else cpu_only).append(key)
            elif self.slots.table(key[0])[key[1]] >= 0:
                awaited.append(key)
            else:
                (free if self._is_pinned(key) else cpu_only).append(key)
        split = self.scheduler.split(free, link_busy_s=link_busy_s, idle_s=idle_s)
        candidates = split.now if self._keeps_crossed else ()
        stays = tuple(key for key in candidates if self.slots.reserve(key) is not None)
        self._wishes.extend(split.background)
        self._wishes.extend(key for key in cpu_only if key != self._coming)
        if cpu_only:
            split = replace(split, cpu=(*split.cpu, *cpu_only))
        return Decision(split, stays, tuple(awaited))

    def begin_upload(self) -> Key | None:
        """The next expert to copy in the background; its slot is reserved."""
        assert self._coming is None
        while self._wishes:
            key = self._wishes.popleft()
            if self.slots.reserve(key) is not None:
                self._coming = key
                return key
        return None

    def arrived(self, key: Key) -> None:
        """An expert that has a slot is there."""
        if key == self._coming:
            self._coming = None
        self.slots.commit(key)
