"""Which way of computing misses is fastest, by timing real steps.

A model of costs can be wrong about a machine in ways that it does not know of: a fixed cost for
each layer, a link that others use, a processor that is busy. So beside the scheduler's own way
there are plain ones, and every now and then a step runs in another than the best. Which one it is
changes nothing in the text.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import Literal

# As the scheduler says; the same, but nothing is sent a layer ahead; all misses on one side.
Mode = Literal["scheduled", "waiting", "cpu", "link"]
MODES: tuple[Mode, ...] = ("scheduled", "cpu", "link")
MODES_WITH_PREFETCH: tuple[Mode, ...] = ("scheduled", "waiting", "cpu", "link")

STEPS = 8  # of a trial; the first of them only changes over
TRIAL_EVERY = 256  # steps at least between two trials of a mode
FIRST_AFTER = 16  # steps, where it is known beforehand about what a trial is going to cost
REMEMBERED = 9  # steps of a mode; the median of their times counts
FORGOTTEN = 4096  # steps after which a trial's result says nothing any more
CLEARLY = 0.94  # of the best mode's time: what another must stay under to replace it
HOPELESS = 1.5  # times the best: such a trial ends at once
ABSURD = 3.0  # times the best: so much need not be waited for twice, if it was expected
SHARE = 0.02  # of all time that may be lost to trials
FIRST_CREDIT, MOST_CREDIT = 4.0, 50.0  # of it, in steps of the best mode


class ModeChooser:
    """Ask `mode` before a step, tell `took` after it.

    Trials cost no more than SHARE of the time: what one is going to lose is known from the last one
    of its kind, or from what the costs say, and must have been saved up.
    """

    def __init__(
        self,
        modes: tuple[Mode, ...] = MODES,
        extra: Callable[[Mode], float] | None = None,
    ) -> None:
        """``extra`` says how many seconds more than the first mode another is expected to take for
        a step."""
        self.modes = modes
        self.extra = extra
        self._times: dict[Mode, list[float]] = {mode: [] for mode in modes}
        self.best: Mode = modes[0]
        self.mode: Mode = modes[0]
        self._left = STEPS  # steps until the mode is thought over
        self._since: dict[Mode, int] = dict.fromkeys(modes, 0)  # steps since it was tried
        self._is_first = True  # step in this mode
        self._credit = 0.0  # seconds
        self._has_begun = False

    def took(self, seconds: float) -> None:
        """A step in `mode` is over."""
        for mode in self._since:
            self._since[mode] += 1
        self._since[self.mode] = 0
        of_best = self.seconds(self.best)
        is_absurd = self._pay(seconds, of_best)
        if self._is_first and len(self._times) > 1 and not is_absurd:
            self._is_first = False
        else:
            times = self._times[self.mode]
            times.append(seconds)
            del times[:-REMEMBERED]
        self._left -= 1
        if self._left <= 0 or (self.mode != self.best and self._is_hopeless(self.mode)):
            self._think()

    def seconds(self, mode: Mode) -> float | None:
        """What a step in this mode takes; ``None`` where it was not tried."""
        times = self._times.get(mode)
        return median(times) if times else None

    def _pay(self, seconds: float, of_best: float | None) -> bool:
        """Save up, or pay for a step of a trial; whether that was as absurd as expected."""
        if of_best is None:
            return False
        if not self._has_begun:
            self._has_begun = True
            self._credit = FIRST_CREDIT * of_best
        self._credit = min(self._credit + SHARE * seconds, MOST_CREDIT * of_best)
        if self.mode == self.best:
            return False
        self._credit -= max(0.0, seconds - of_best)
        return min(seconds, self._expected(self.mode, of_best) or 0.0) > ABSURD * of_best

    def _think(self) -> None:
        of_best = self.seconds(self.best)
        tried = self.seconds(self.mode)
        if of_best is not None and tried is not None and tried < CLEARLY * of_best:
            self.best = self.mode
        following = self._due()
        if following != self.mode:
            self._is_first = True
            if following != self.best:
                self._times[following] = []  # what it took long ago is not what it takes now
        self.mode = following
        self._left = STEPS if following != self.best else 1

    def _due(self) -> Mode:
        """The mode to try, or the best."""
        of_best = self.seconds(self.best)
        if of_best is None:
            return self.best
        for mode, since in self._since.items():
            if mode == self.best or mode == self.mode:
                continue
            expected = self._expected(mode, of_best)
            is_new = not self._times[mode] and expected is not None
            if since < (FIRST_AFTER if is_new else TRIAL_EVERY):
                continue
            if self._lost(expected or 0.0, of_best) <= max(0.0, self._credit):
                return mode
        return self.best

    def _expected(self, mode: Mode, of_best: float) -> float | None:
        """Seconds of a step, by the last trial or by what costs say; ``None`` without either. What
        is expected to lose more than can be saved up is not tried."""
        known = self.seconds(mode) if self._since[mode] < FORGOTTEN else None
        if known is not None or self.extra is None:
            return known
        return of_best + self.extra(mode) - self.extra(self.best)

    def _lost(self, expected: float, of_best: float) -> float:
        """Seconds that a trial is going to lose."""
        steps = STEPS
        if expected > HOPELESS * of_best:
            steps = 1 if expected > ABSURD * of_best else 2
        return steps * (expected - of_best)

    def _is_hopeless(self, mode: Mode) -> bool:
        known, of_best = self.seconds(mode), self.seconds(self.best)
        return known is not None and of_best is not None and known > HOPELESS * of_best
