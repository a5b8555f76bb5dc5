"""Which expert to keep. No tensors, no slots, no clock: keys in, keys out.

A policy ranks experts by what it has seen. The rules that hold whatever the policy (a floor for
each layer, no expert taken away while it is in use) are `ExpertSlots`' business; they reach a
policy as ``may_leave``. Shared experts are always on the device and never get here.
"""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Collection, Iterable
from math import exp, inf, log, log1p
from typing import Protocol

Key = tuple[int, int]  # layer, expert
Rank = tuple[float, ...]

HALF_LIFE_TOKENS = 18


class ExpertPolicy(Protocol):
    """What to ask and tell a policy."""

    def on_use(self, key: Key, probability: float = 1.0, *, chosen: bool = True) -> None:
        """The router looked at an expert, resident or not; in the order of the computation.

        Args:
            key: the expert.
            probability: the router's, after its softmax over all experts; 1 where it is not known.
            chosen: whether a token goes there; false for runners-up, told after the chosen ones of
                their token and layer. Only some policies mind them.
        """

    def place(self, key: Key) -> None:
        """An expert got a slot: from now on it may be a victim."""

    def victim(self, incoming: Key, may_leave: Callable[[Key], bool]) -> Key | None:
        """The resident expert whose slot ``incoming`` gets; no longer resident after this.

        Returns:
            ``None`` when no resident may leave, or when none is worth less than ``incoming``.
        """

    def lowest(self, may_leave: Callable[[Key], bool]) -> Key | None:
        """The resident expert that is worth least, where a slot goes away; no longer resident after
        this. ``None`` when no resident may leave."""

    def rank(self, key: Key) -> Rank:
        """What an expert is worth now, resident or not; higher is more."""


class RankedPolicy:
    """Gives up the expert of lowest rank. Ranks change only when an expert is looked at, so a heap
    finds the lowest in logarithmic time."""

    bypasses = False  # whether an expert that ranks below all residents stays out

    def __init__(self) -> None:
        self._resident: dict[Key, Rank] = {}
        self._heap: list[tuple[Rank, Key]] = []  # entries that no longer tell the rank are stale

    def rank(self, key: Key) -> Rank:
        """What an expert is worth now, resident or not; the lowest goes first."""
        raise NotImplementedError

    def note(self, key: Key, probability: float, *, chosen: bool) -> None:
        """Learn from `on_use`."""

    def on_use(self, key: Key, probability: float = 1.0, *, chosen: bool = True) -> None:
        """See `ExpertPolicy`."""
        self.note(key, probability, chosen=chosen)
        if key in self._resident:
            self.place(key)

    def place(self, key: Key) -> None:
        """See `ExpertPolicy`."""
        rank = self.rank(key)
        self._resident[key] = rank
        heapq.heappush(self._heap, (rank, key))
        if len(self._heap) > 8 * len(self._resident) + 64:
            self._heap = [(rank, key) for key, rank in self._resident.items()]
            heapq.heapify(self._heap)

    def victim(self, incoming: Key, may_leave: Callable[[Key], bool]) -> Key | None:
        """See `ExpertPolicy`."""
        return self._leaving(may_leave, self.rank(incoming) if self.bypasses else None)

    def lowest(self, may_leave: Callable[[Key], bool]) -> Key | None:
        """See `ExpertPolicy`."""
        return self._leaving(may_leave)

    def _leaving(self, may_leave: Callable[[Key], bool], below: Rank | None = None) -> Key | None:
        """Of those that rank below a rank, if one is given."""
        staying = []
        found = None
        while self._heap and found is None:
            rank, key = entry = heapq.heappop(self._heap)
            if self._resident.get(key) != rank:
                continue
            if below is not None and below <= rank:
                staying.append(entry)
                break  # all others rank higher
            if may_leave(key):
                found = key
            else:
                staying.append(entry)
        for entry in staying:
            heapq.heappush(self._heap, entry)
        if found is not None:
            del self._resident[found]
        return found


class AllResident(RankedPolicy):
    """Everything fits: nobody ever leaves."""

    def rank(self, key: Key) -> Rank:
        return (0.0,)

    def victim(self, incoming: Key, may_leave: Callable[[Key], bool]) -> Key | None:
        return None


class Static(RankedPolicy):
    """A fixed choice: those of ``kept`` come in as they are used and stay; others only lend slots
    that are free."""

    bypasses = True

    def __init__(self, kept: Collection[Key]) -> None:
        super().__init__()
        self._kept = frozenset(kept)

    def rank(self, key: Key) -> Rank:
        return (float(key in self._kept),)


class LeastRecentlyUsed(RankedPolicy):
    """Gives up the expert that has not been used for longest."""

    def __init__(self) -> None:
        super().__init__()
        self._uses = 0
        self._last: dict[Key, int] = {}

    def rank(self, key: Key) -> Rank:
        return (self._last.get(key, -1),)

    def note(self, key: Key, probability: float, *, chosen: bool) -> None:
        if chosen:
            self._uses += 1
            self._last[key] = self._uses


class LeastFrequentlyUsed(LeastRecentlyUsed):
    """Gives up the expert with the fewest uses since the start, then the least recent. Experts keep
    their count while they are away."""

    def __init__(self) -> None:
        super().__init__()
        self._count: Counter[Key] = Counter()

    def rank(self, key: Key) -> Rank:
        return (self._count[key], *super().rank(key))

    def note(self, key: Key, probability: float, *, chosen: bool) -> None:
        super().note(key, probability, chosen=chosen)
        self._count[key] += chosen


class ScoreWindow(RankedPolicy):
    """Gives up the expert with the lowest score: how often it was chosen lately, fading, and how
    nearly it was chosen.

    A use counts 1; a runner-up the ratio of its probability to that of the last expert that was
    chosen. All of it halves with every half-life. A short one is like LRU, a long one like LFU.
    All scores fade alike, so their order changes with uses only; they are kept as logarithms of
    what they would have been worth at the start, which never overflow.
    """

    def __init__(self, half_life: float, *, runners_up: bool = True, bypasses: bool = True) -> None:
        """
        Args:
            half_life: in uses of chosen experts; a token has top_k * layers of them.
            runners_up: mind what nearly was chosen.
            bypasses: keep an expert out that scores below all residents.
        """
        super().__init__()
        self.bypasses = bypasses
        self._growth = log(2) / half_life
        self._runners_up = runners_up
        self._uses = 0
        self._last_probability = 1.0
        self._log_score: dict[Key, float] = {}

    @classmethod
    def for_model(cls, layers: int, top_k: int) -> ScoreWindow:
        """As it does best on the traces there are (docs/offload.md)."""
        return cls(HALF_LIFE_TOKENS * layers * top_k)

    def rank(self, key: Key) -> Rank:
        return (self._log_score.get(key, -inf),)

    def note(self, key: Key, probability: float, *, chosen: bool) -> None:
        gain = self._uses * self._growth
        if chosen:
            self._uses += 1
            gain += self._growth
            self._last_probability = probability
        elif self._runners_up and 0 < probability <= self._last_probability:
            gain += log(probability / self._last_probability)
        else:
            return
        old = self._log_score.get(key, -inf)
        high, low = max(old, gain), min(old, gain)
        self._log_score[key] = high + log1p(exp(low - high))


class Belady(RankedPolicy):
    """Knows the future: gives up the expert whose next use is farthest away. For the simulator.

    With bypass, free to keep an expert out, and asked at every single use, no policy has more hits
    (for blocks of equal size; Belady 1966).
    """

    def __init__(self, uses: Iterable[Key], *, bypasses: bool = True) -> None:
        """``uses``: every key that `on_use` will be told as chosen, in that order."""
        super().__init__()
        self.bypasses = bypasses
        self._ahead: dict[Key, deque[int]] = defaultdict(deque)
        for place, key in enumerate(uses):
            self._ahead[key].append(place)

    def rank(self, key: Key) -> Rank:
        ahead = self._ahead.get(key)
        return (-ahead[0],) if ahead else (-inf,)

    def note(self, key: Key, probability: float, *, chosen: bool) -> None:
        if chosen:
            self._ahead[key].popleft()
