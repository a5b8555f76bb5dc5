"""What a transfer or computation costs, by what the latest ones took; the clock is outside."""

from __future__ import annotations

from collections import deque
from statistics import median

# Of the host, from a layer's choice to the beginning of its misses, in Python; more where the next
# layer's choice is guessed. On a Zen 5 server 24 to 32 and 8 to 12 µs (bench/coordination.py).
COORDINATION_S, GUESSING_S = 30e-6, 12e-6

JUMP = 1.5  # an observation this many times off what was expected is an outlier, or news
SLOWER, FASTER = 5, 1  # so many in a row are news; nothing is fast by accident
PRIOR_WEIGHT = 0.5  # of what is expected beforehand, in observations


class LinearCost:
    """Seconds as a fixed part plus bytes over a bandwidth; both are estimates that follow.

    Least squares over the observations, weighted by age. Sizes that hardly vary do not tell the
    two parts apart: then they keep the proportion that was expected. One observation that is far
    off moves the estimate little; several in a row that agree replace all that came before.
    """

    def __init__(self, fixed_s: float, bytes_per_s: float, *, half_life: float = 32.0) -> None:
        """
        Args:
            fixed_s: expected fixed part, in seconds.
            bytes_per_s: expected bandwidth.
            half_life: observations after which one counts half.
        """
        self._expected = (fixed_s, 1 / bytes_per_s)
        self._keep = 0.5 ** (1 / half_life)
        self._recent: deque[tuple[float, float, float]] = deque(maxlen=SLOWER)
        self._sums = [0.0] * 5  # of weights, bytes, bytes squared, seconds, bytes times seconds
        self.fixed_s, self._per_byte = self._expected

    @property
    def bytes_per_s(self) -> float:
        """The bandwidth."""
        return 1 / self._per_byte if self._per_byte > 0 else float("inf")

    def seconds(self, nbytes: float) -> float:
        """What moving or reading ``nbytes`` is going to take; nothing for nothing."""
        return self.fixed_s + nbytes * self._per_byte if nbytes else 0.0

    def observe(self, nbytes: float, seconds: float) -> None:
        """``nbytes``, more than 0, took so long."""
        expected = self.seconds(nbytes)
        self._recent.append((nbytes, seconds, seconds / expected))
        news = self._news()
        if news:
            self._sums = [0.0] * 5
            typical = median(ratio for _, _, ratio in news)
            for size, took, ratio in news:  # outliers come among news, too
                self._add(size, took * min(1.0, JUMP * typical / ratio))
            self._recent.clear()
        else:
            self._add(nbytes, min(max(seconds, expected / JUMP), expected * JUMP))
        self._fit()

    def _news(self) -> list[tuple[float, float, float]]:
        """The latest observations, if they say that all before them are out of date."""
        latest = list(self._recent)
        slower, faster = latest[-SLOWER:], latest[-FASTER:]
        if len(slower) == SLOWER and all(ratio > JUMP for _, _, ratio in slower):
            return slower
        if len(faster) == FASTER and all(ratio < 1 / JUMP for _, _, ratio in faster):
            return faster
        return []

    def _add(self, nbytes: float, seconds: float) -> None:
        terms = (1.0, nbytes, nbytes * nbytes, seconds, nbytes * seconds)
        self._sums = [old * self._keep + new for old, new in zip(self._sums, terms, strict=True)]

    def _fit(self) -> None:
        weight, size, size2, time, product = self._sums
        fixed, per_byte = self._expected
        level = time / (weight * fixed + size * per_byte)
        fixed, per_byte = fixed * level, per_byte * level
        # Departures from the expected proportion, held back by a few observations' weight.
        residual = time - weight * fixed - size * per_byte
        residual_product = product - size * fixed - size2 * per_byte
        mean2 = size2 / weight
        a, b, c = weight + PRIOR_WEIGHT, size, size2 + PRIOR_WEIGHT * mean2
        determinant = a * c - b * b
        fixed += (residual * c - residual_product * b) / determinant
        per_byte += (residual_product * a - residual * b) / determinant
        if fixed < 0:
            fixed, per_byte = 0.0, product / size2
        elif per_byte < 0:
            fixed, per_byte = time / weight, 0.0
        self.fixed_s, self._per_byte = fixed, per_byte
