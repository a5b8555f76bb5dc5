"""The parts of a machine that take time: queues of work, and the link."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from xverse_runtime.offload.machine import Machine
from xverse_runtime.offload.simulator_clock import Clock, Signal, all_of
from xverse_runtime.offload.simulator_memory import Flow, HostMemory

# The GPU, the CPU's experts, expert copies to the GPU, small copies back, and reading the disk.
PARTS = ("gpu", "cpu", "link", "back", "disk")


class Span(NamedTuple):
    """A part of the machine at work; seconds of the simulation."""

    part: str
    start: float
    end: float
    what: str


@dataclass
class Meter:
    """How long a part has been at work. One piece of work at a time."""

    clock: Clock
    part: str
    journal: list[Span] | None = None  # where to note every piece
    _total: float = 0.0
    _since: float | None = None

    def start(self) -> None:
        assert self._since is None
        self._since = self.clock.now

    def stop(self, what: str) -> None:
        assert self._since is not None
        self._total += self.clock.now - self._since
        if self.journal is not None:
            self.journal.append(Span(self.part, self._since, self.clock.now, what))
        self._since = None

    @property
    def is_stopped(self) -> bool:
        return self._since is None

    @property
    def busy_s(self) -> float:
        """So far, the piece under way included."""
        return self._total + (0.0 if self._since is None else self.clock.now - self._since)


class Lane:
    """A part that does one thing after the other, in the order they were asked for: a GPU's stream,
    a disk, small copies in one direction."""

    def __init__(
        self, clock: Clock, meter: Meter, idle: Callable[[str, float], None] | None = None
    ) -> None:
        """
        Args:
            clock: of the simulation.
            meter: counts the work.
            idle: told how long the part had nothing to do, and what for.
        """
        self._clock = clock
        self._waiting: deque[tuple[float, str, Signal]] = deque()
        self._working = False
        self._idle = idle
        self._idle_since = clock.now
        self.meter = meter

    def run(self, seconds: float, what: str, waited_for: str = "") -> Signal:
        """Work that takes ``seconds``; the signal is its end.

        Args:
            seconds: how long it takes.
            what: for the journal.
            waited_for: why it could not begin earlier, if the part is idle.
        """
        end = Signal()
        self._waiting.append((seconds, what, end))
        if not self._working:
            if self._idle is not None and self._clock.now > self._idle_since:
                self._idle(waited_for, self._clock.now - self._idle_since)
            self._next()
        return end

    def _next(self) -> None:
        seconds, what, end = self._waiting.popleft()
        self._working = True
        self.meter.start()

        def finish() -> None:
            self.meter.stop(what)
            self._working = False
            self._idle_since = self._clock.now
            if self._waiting:
                self._next()
            end.happen()

        self._clock.after(seconds, finish)


class Copy(NamedTuple):
    """A copy to the GPU.

    Args:
        nbytes: its size.
        what: for the journal.
        arrived: happens when the bytes are there.
        latency: fixed cost before the bytes begin to flow.
        traffic: as in `Flow`.
    """

    nbytes: float
    what: str
    arrived: Signal
    latency: float = 0.0
    traffic: float = 1.0


class Link:
    """Copies to the GPU, one at a time. Critical ones go first; none is broken off.

    Whenever nothing critical waits, ``next_background`` is asked for another copy.
    """

    def __init__(
        self,
        clock: Clock,
        memory: HostMemory,
        bandwidth: float,
        meter: Meter,
    ) -> None:
        self.next_background: Callable[[], Copy | None] = lambda: None
        self.bandwidth = bandwidth
        self.meter = meter
        self.moved = 0.0  # bytes that have arrived
        self.longest_delay = 0.0  # of a critical copy, by one that was under way
        self._clock = clock
        self._memory = memory
        self._critical: deque[Copy] = deque()
        self._current: tuple[Copy, Flow | None] | None = None

    @property
    def free(self) -> Signal:
        """Happens when no copy is under way."""
        return all_of([] if self._current is None else [self._current[0].arrived])

    @property
    def busy_s(self) -> float:
        """How long the copy under way is going to take at its present rate."""
        if self._current is None:
            return 0.0
        copy, flow = self._current
        if flow is None:
            return copy.latency + copy.nbytes / self.bandwidth
        return self._memory.seconds_left(flow)

    def copy_now(self, copies: list[Copy]) -> None:
        """Critical copies, one right after the other."""
        asked = self._clock.now
        self.free.then(lambda: self._note_delay(self._clock.now - asked))
        self._critical.extend(copies)
        self.wake()

    def wake(self) -> None:
        """There may be something to copy."""
        if self._current is not None:
            return
        copy = self._critical.popleft() if self._critical else self.next_background()
        if copy is not None:
            self._current = (copy, None)
            self.meter.start()
            self._clock.after(copy.latency, lambda: self._flow(copy))

    def _note_delay(self, seconds: float) -> None:
        self.longest_delay = max(self.longest_delay, seconds)

    def _flow(self, copy: Copy) -> None:
        flow = self._memory.start(copy.nbytes, self.bandwidth, copy.traffic)
        self._current = (copy, flow)
        flow.done.then(lambda: self._finish(copy))

    def _finish(self, copy: Copy) -> None:
        self.meter.stop(copy.what)
        self.moved += copy.nbytes
        self._current = None
        copy.arrived.happen()
        self.wake()


class Hardware:
    """All parts of a described machine, at time 0."""

    def __init__(self, machine: Machine, journal: list[Span] | None = None) -> None:
        """
        Args:
            machine: with a GPU.
            journal: where to note every piece of work.
        """
        self.machine = machine
        self.clock = Clock()
        self.waits: dict[str, float] = {}  # seconds that the GPU waited, by what for
        self._meters = {name: Meter(self.clock, name, journal) for name in PARTS}
        self.memory = HostMemory(self.clock, machine.host_bandwidth)
        self.gpu = Lane(self.clock, self._meters["gpu"], self._gpu_waited)
        self.back = Lane(self.clock, self._meters["back"])
        self.disk = Lane(self.clock, self._meters["disk"])
        self.cpu = self._meters["cpu"]
        self.link = Link(self.clock, self.memory, machine.link_to_gpu, self._meters["link"])

    def change(self, machine: Machine) -> None:
        """It is another from now on."""
        self.machine = machine
        self.link.bandwidth = machine.link_to_gpu
        self.memory.change(machine.host_bandwidth)

    def busy(self) -> dict[str, float]:
        """Seconds at work so far; of the memory its traffic over its bandwidth."""
        lanes = {name: meter.busy_s for name, meter in self._meters.items()}
        return {**lanes, "memory": self.memory.busy_s}

    def _gpu_waited(self, cause: str, seconds: float) -> None:
        self.waits[cause] = self.waits.get(cause, 0.0) + seconds
