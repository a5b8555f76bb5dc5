"""Which way of computing misses is fastest, by timing real steps.

A model of costs can be wrong about a machine in ways that it does not know of: a fixed cost for
each layer, a link that others use, a processor that is busy. So beside the scheduler's own way
there are plain ones, and every now and then a step runs in another than the best. Which one it is
changes nothing in the text.
"""

from __future__ import annotations

from statistics import median
from typing import Literal

# As the scheduler says; the same, but nothing is sent a layer ahead; all misses on one side.
Mode = Literal["scheduled", "waiting", "cpu", "link"]
MODES: tuple[Mode, ...] = ("scheduled", "cpu", "link")
MODES_WITH_PREFETCH: tuple[Mode, ...] = ("scheduled", "waiting", "cpu", "link")

STEPS = 8  # of a trial; the first of them only changes over
TRIAL_EVERY = 256  # steps of the best mode between two trials
REMEMBERED = 9  # steps of a mode; the median of their times counts
CLEARLY = 0.92  # of the best mode's time: what another must stay under to replace it
HOPELESS = 1.5  # times the best: such a trial ends at once, and comes a quarter as often


class ModeChooser:
    """Ask `mode` before a step, tell `took` after it."""

    def __init__(self, modes: tuple[Mode, ...] = MODES) -> None:
        self.modes = modes
        self._times: dict[Mode, list[float]] = {mode: [] for mode in modes}
        self.best: Mode = modes[0]
        self.mode: Mode = modes[0]
        self._left = STEPS  # steps until the mode is thought over
        self._since: dict[Mode, int] = dict.fromkeys(modes, 0)  # steps since it was tried
        self._is_first = True  # step in this mode

    def took(self, seconds: float) -> None:
        """A step in `mode` is over."""
        for mode in self._since:
            self._since[mode] += 1
        self._since[self.mode] = 0
        if self._is_first and len(self._times) > 1:
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
        for mode, since in self._since.items():
            if mode == self.best or mode == self.mode:
                continue
            if since >= TRIAL_EVERY * (4 if self._is_hopeless(mode) else 1):
                return mode
        return self.best

    def _is_hopeless(self, mode: Mode) -> bool:
        known, of_best = self.seconds(mode), self.seconds(self.best)
        return known is not None and of_best is not None and known > HOPELESS * of_best
