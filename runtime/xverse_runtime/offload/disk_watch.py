"""Notices that experts come from the disk: pages of a store that memory does not hold yet, or no
longer."""

from __future__ import annotations

from collections.abc import Callable

MANY = 8  # major faults in a step; a program has one now and then for other reasons


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

    def step(self) -> None:
        """A step is over."""
        if self._tell is None:
            return
        now = self._count()
        if now - self._before >= MANY:
            self._tell()
            self._tell = None
        self._before = now
