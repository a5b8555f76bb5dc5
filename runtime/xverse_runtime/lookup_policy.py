"""How many proposals to check in a forward pass, from what has been seen in the same reply."""

from __future__ import annotations

from collections import deque
from statistics import median

LONGEST = 32  # a match is not measured beyond this
# How often a proposal is right, by the bits of its match's length, until it has been seen.
PRIOR = {1: 0.2, 2: 0.35, 3: 0.6, 4: 0.8, 5: 0.9, 6: 0.95}
PRIOR_WEIGHT, WINDOW = 4, 32  # in observations
FURTHER = 0.4  # time of a further token of a pass, that of the first being 1, until measured
RECENT = 5  # passes of one size whose median counts: a shared machine disturbs some
PROBE = 64  # after so many passes of one kind, with proposals or without, one of the other


class PassTimes:
    """How long passes take by their number of tokens, from the latest of each."""

    def __init__(self) -> None:
        self._recent: dict[int, deque[float]] = {}
        self._typical: dict[int, float] = {}

    def add(self, tokens: int, seconds: float) -> None:
        recent = self._recent.setdefault(tokens, deque(maxlen=RECENT))
        recent.append(seconds)
        self._typical[tokens] = median(recent)

    def knows(self, tokens: int) -> bool:
        """Whether such a pass has been timed."""
        return tokens in self._typical

    def relative(self, tokens: int) -> float:
        """Time of a pass over ``tokens``, that over one being 1; as the nearest size that has been
        timed suggests."""
        one = self._typical.get(1)
        nearest = min(self._recent.keys() - {1}, key=lambda size: abs(size - tokens), default=0)
        further = FURTHER
        if one and nearest:
            further = max(0.0, (self._typical[nearest] / one - 1) / (nearest - 1))
        return 1 + further * (tokens - 1)


class LookupPolicy:
    """How many proposals to check: as many as promise the most tokens for the time."""

    def __init__(self) -> None:
        self._times = PassTimes()
        self._right = dict(PRIOR)
        self._seen = dict.fromkeys(PRIOR, PRIOR_WEIGHT)
        self._with_proposals = 0  # passes in a row
        self._without = 0

    def count(self, matched: int, most: int) -> int:
        """How many of ``most`` proposals to check after a match of ``matched`` tokens."""
        best = self._best(matched, most) if self._times.knows(1) else 0
        if best and self._with_proposals >= PROBE:
            return 0
        if not best and self._without >= PROBE:
            return min(1, most)
        return best

    def timed(self, proposals: int, seconds: float) -> None:
        """A pass over the newest token and so many proposals took so long."""
        self._times.add(1 + proposals, seconds)
        self._with_proposals = self._with_proposals + 1 if proposals else 0
        self._without = 0 if proposals else self._without + 1

    def predicted(self, matched: int, right: bool) -> None:
        """Whether what followed a match was the next token; told for every match, checked or not,
        so that nothing need be checked to find out whether it would pay."""
        level = _level(matched)
        self._seen[level] = min(self._seen[level] + 1, WINDOW)
        self._right[level] += (right - self._right[level]) / self._seen[level]

    def _best(self, matched: int, most: int) -> int:
        best, best_rate = 0, 1.0
        chance = tokens = 1.0
        for count in range(1, most + 1):
            # Once the first proposals have been right, the match is as much longer.
            chance *= self._right[_level(matched + count - 1)]
            tokens += chance
            rate = tokens / self._times.relative(1 + count)
            if rate > best_rate:
                best, best_rate = count, rate
        return best


def _level(matched: int) -> int:
    return min(matched, LONGEST).bit_length()
