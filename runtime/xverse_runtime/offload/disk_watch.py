"""Notices that experts come from the disk: pages of a store that memory does not hold yet, or no
longer."""

from __future__ import annotations

from collections.abc import Callable

MANY = 8  # major faults in a step; a program has one now and then for other reasons
WARM_UP = 32  # steps in which pages come for the first time
IN_A_ROW = 3


def major_faults() -> int:
    """Of this process, since its start; 0 where the system does not count them."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_majflt


class DiskWatch:
    """Tells, once, when steps wait for the disk."""

    def __init__(self, tell: Callable[[], None], count: Callable[[], int] = major_faults) -> None:
        """``tell`` is called once; ``count`` gives the faults so far."""
        self._tell: Callable[[], None] | None = tell
        self._count = count
        self._before = count()
        self._steps = self._slow = 0

    def step(self) -> None:
        """A step is over."""
        if self._tell is None:
            return
        now = self._count()
        self._steps += 1
        self._slow = self._slow + 1 if now - self._before >= MANY else 0
        self._before = now
        if self._steps > WARM_UP and self._slow >= IN_A_ROW:
            self._tell()
            self._tell = None
