"""Virtual time: signals that happen once, and processes that wait for them.

A process is a generator that yields what it waits for. Nothing here depends on the real clock or on
chance: the same processes give the same times.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Generator, Iterable

Process = Generator["Signal", None, None]


class Signal:
    """Something that happens once; whoever waits for it is told then."""

    __slots__ = ("_waiting", "happened")

    def __init__(self) -> None:
        self.happened = False
        self._waiting: list[Callable[[], None]] = []

    def then(self, action: Callable[[], None]) -> None:
        """Call ``action`` when it happens, or now if it has."""
        if self.happened:
            action()
        else:
            self._waiting.append(action)

    def happen(self) -> None:
        """It happens now."""
        assert not self.happened
        self.happened = True
        waiting, self._waiting = self._waiting, []
        for action in waiting:
            action()


class Clock:
    """The time, in seconds, and what is due when. What is due at the same time happens in the order
    in which it was asked for."""

    def __init__(self) -> None:
        self.now = 0.0
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0

    def after(self, seconds: float, action: Callable[[], None]) -> None:
        """Call ``action`` so much later."""
        assert seconds >= 0
        self._count += 1
        heapq.heappush(self._due, (self.now + seconds, self._count, action))

    def delay(self, seconds: float) -> Signal:
        """A signal that happens so much later."""
        signal = Signal()
        self.after(seconds, signal.happen)
        return signal

    def start(self, process: Process) -> Signal:
        """Run a process from now on; the signal is its end."""
        end = Signal()

        def step() -> None:
            for waited_for in process:
                if not waited_for.happened:
                    waited_for.then(step)
                    return
            end.happen()

        step()
        return end

    def run_until(self, signal: Signal) -> None:
        """Let time pass until ``signal`` has happened."""
        while not signal.happened:
            self.now, _, action = heapq.heappop(self._due)
            action()


def all_of(signals: Iterable[Signal]) -> Signal:
    """Happens with the last of them; now, if there are none."""
    waiting = [one for one in signals if not one.happened]
    joint = Signal()
    left = len(waiting)
    if not left:
        joint.happen()

    def count() -> None:
        nonlocal left
        left -= 1
        if not left:
            joint.happen()

    for one in waiting:
        one.then(count)
    return joint
