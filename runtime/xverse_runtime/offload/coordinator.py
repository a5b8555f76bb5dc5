"""What happens to the experts of a decoded layer: the rules, without bytes and without a clock.

The runtime and the simulator go through the same steps. When the choices have come to the host,
`decide`: some misses are computed on the CPU, some cross the link now. When the layer's work has
been asked for, `note`: the policy hears of it, and what crossed may `keep` a slot. Whenever the
link is idle, `begin_upload` names the next expert to copy in the background; `arrived` makes it a
hit.

One layer ahead: `expect` is told what the next layer's router would choose by now, and picks the
expert that `Prefetch` sends when the link is idle. It is computed like a hit, or waited for like
what is on its way, if the layer does choose it; `leave` tells how often that is so.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from xverse_runtime.offload.expert_slots import ExpertSlots, Reservation
from xverse_runtime.offload.policy import Key
from xverse_runtime.offload.prefetch import Prefetch
from xverse_runtime.offload.scheduler import MissScheduler, Split

MOST_WISHES = 64  # background copies that wait; the oldest are given up


@dataclass(frozen=True)
class Decision:
    """Of a layer's misses.

    Args:
        split: what is computed on the CPU and what crosses now.
        only_cpu: of ``split.cpu``: what could not have crossed.
        awaited: on its way already and there before the CPU would be done, or there since
            `Coordinator.missing`: the GPU computes it.
    """

    split: Split
    only_cpu: tuple[Key, ...] = ()
    awaited: tuple[Key, ...] = ()


NOTHING = Decision(Split((), (), ()))


class Coordinator:
    """Slots, scheduler, and the list of background copies, kept in step."""

    def __init__(
        self,
        slots: ExpertSlots,
        scheduler: MissScheduler,
        *,
        is_pinned: Callable[[Key], bool] = lambda key: True,
        most_now: int | None = None,
    ) -> None:
        """
        Args:
            slots: of the model.
            scheduler: decides about the misses.
            is_pinned: whether the link can read an expert where it lies; others go to the CPU, and
                only in the background, by a buffer, to the GPU.
            most_now: experts of a layer that can cross at once; the others go to the CPU.
        """
        self.slots = slots
        self.scheduler = scheduler
        self._is_pinned = is_pinned
        self.most_now = most_now
        self._wishes: deque[Key] = deque(maxlen=MOST_WISHES)
        self._coming: Key | None = None  # the one background copy under way
        self.prefetch = Prefetch()

    def missing(self, layer: int, experts: Sequence[int]) -> list[Key]:
        """Those of the chosen experts that the GPU does not have, each once, in the same order."""
        table, prefetched = self.slots.table(layer), self.prefetch.there(layer)
        return [
            (layer, expert)
            for expert in dict.fromkeys(experts)
            if table[expert] < 0 and expert != prefetched
        ]

    def decide(
        self,
        missing: Sequence[Key],
        *,
        link_busy_s: float = 0.0,
        idle_s: float = 0.0,
        coming_s: float | None = None,
        only: Literal["cpu", "link"] | None = None,
    ) -> Decision:
        """What to do about a layer's misses.

        Args:
            missing: the most probable first.
            link_busy_s: until the copy that is under way ends.
            idle_s: the link's time between the misses of two layers.
            coming_s: until the background copy is there; by default ``link_busy_s``, as always for
                what was sent ahead.
            only: the one way to take, whatever it costs.
        """
        if not missing:
            return NOTHING
        coming_s = link_busy_s if coming_s is None else coming_s
        awaited: list[Key] = []
        only_cpu: list[Key] = []
        free: list[Key] = []
        for key in missing:
            if key in (self._coming, self.prefetch.coming):
                cpu_s = self.scheduler.seconds(len(missing), 0)
                wait_s = coming_s if key == self._coming else link_busy_s
                (awaited if wait_s <= cpu_s else only_cpu).append(key)
            elif self.slots.table(key[0])[key[1]] >= 0 or self.prefetch.is_there(key):
                awaited.append(key)
            else:
                (free if self._is_pinned(key) else only_cpu).append(key)
        free.sort(key=self.slots.policy.rank, reverse=True)  # what is wanted most crosses first
        split = self.scheduler.split(free, link_busy_s=link_busy_s, idle_s=idle_s, only=only)
        now, over = split.now[: self.most_now], split.now[len(split.now[: self.most_now]) :]
        later = (*split.background, *(key for key in only_cpu if key != self._coming))
        self._wishes.extend(reversed(later))
        if over or only_cpu:
            split = Split((*split.cpu, *over, *only_cpu), now, split.background, split.usual_s)
        return Decision(split, (*over, *only_cpu), tuple(awaited))

    def note(
        self, layer: int, experts: Sequence[int], probabilities: Sequence[float] | None, top_k: int
    ) -> None:
        """A token went to the first ``top_k`` of ``experts``; the others were next.

        `ExpertSlots.enter_layer` comes before the first token of a layer.
        """
        slots = self.slots
        slots.use(layer, experts[:top_k], probabilities)
        for place in range(top_k, len(experts)):
            probability = probabilities[place] if probabilities else 0.0
            slots.policy.on_use((layer, experts[place]), probability, chosen=False)

    def expect(self, layer: int, guesses: Sequence[int], *, send: bool = True) -> None:
        """What a layer is likely to choose, known one layer early.

        Args:
            layer: the next one.
            guesses: the most probable first.
            send: whether one of them may be sent ahead.
        """
        lacking = (
            key
            for key in self.missing(layer, guesses)
            if self._is_pinned(key) and not self.slots.is_coming(key)
        )
        self.prefetch.expect(next(lacking, None), send=send)

    def begin_prefetch(self, layer_s: float) -> Key | None:
        """What to send ahead now that the link is idle, to the place of its layer.

        Args:
            layer_s: from one layer's choice to the next.
        """
        return self.prefetch.begin() if self.scheduler.prefetches(layer_s) else None

    def leave(self, layer: int, experts: Collection[int]) -> None:
        """A layer is over, in which tokens went to these experts."""
        guessed = self.prefetch.guessed(layer)
        if guessed is not None:
            self.scheduler.observe_guess(guessed[1] in experts)
            self.prefetch.leave(layer)

    def keep(self, key: Key) -> Reservation | None:
        """A slot for an expert that is on the GPU, in a buffer, if the cache wants it; it is a hit
        from now on."""
        if self.slots.is_coming(key) or self.slots.table(key[0])[key[1]] >= 0:
            return None
        reservation = self.slots.reserve(key)
        if reservation is not None:
            self.slots.commit(key)
        return reservation

    @property
    def has_wishes(self) -> bool:
        """Whether experts wait for a copy in the background."""
        return bool(self._wishes)

    def begin_upload(self) -> tuple[Key, Reservation] | None:
        """The next expert to copy in the background, into the slot that is reserved for it."""
        assert self._coming is None
        while self._wishes:
            key = self._wishes.pop()  # the latest wish is the likeliest to be of use
            if self.slots.is_coming(key) or self.slots.table(key[0])[key[1]] >= 0:
                continue
            reservation = self.slots.reserve(key)
            if reservation is not None:
                self._coming = key
                return key, reservation
        return None

    def arrived(self) -> Key:
        """The background copy is there: its expert is a hit from now on."""
        key = self._coming
        assert key is not None
        self._coming = None
        self.slots.commit(key)
        return key

    def abandoned(self) -> None:
        """The background copy will not come: its slot is free again."""
        key = self._coming
        assert key is not None
        self._coming = None
        self.slots.cancel(key)
