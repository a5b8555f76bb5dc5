"""Notices that experts come from the disk: pages of a store that memory does not hold yet, or no
longer."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter

MANY = 8  # major faults in a pass; a program has one now and then for other reasons
TOLD_AFTER_S = 2.0  # of passes with so many: less is not worth a word


def major_faults() -> int:
    """Of this process, since its start; 0 where the system does not count them."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_majflt


class DiskWatch:
    """Tells, once, that passes wait for the disk: the first ones, while pages come into memory,
    or later ones, whose pages the system has given up."""

    def __init__(
        self,
        tell: Callable[[], None] = lambda: None,
        count: Callable[[], int] = major_faults,
        clock: Callable[[], float] = perf_counter,
    ) -> None:
        """``tell`` is called once; ``count`` gives the faults so far."""
        self._tell: Callable[[], None] | None = tell
        self._count = count
        self._clock = clock
        self._began = (count(), clock())
        self._slow_s = 0.0

    def begin(self) -> None:
        """A pass begins."""
        self._began = (self._count(), self._clock())

    def end(self) -> float:
        """It is over.

        Returns:
            Its seconds, if experts came from the disk meanwhile.
        """
        faults, began = self._began
        if self._count() - faults < MANY:
            return 0.0
        seconds = self._clock() - began
        self._slow_s += seconds
        if self._tell is not None and self._slow_s >= TOLD_AFTER_S:
            self._tell()
            self._tell = None
        return seconds
