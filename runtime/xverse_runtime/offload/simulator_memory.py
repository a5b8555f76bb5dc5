"""The host's memory: bandwidth that the CPU's reads and the link's copies share."""

from __future__ import annotations

from dataclasses import dataclass, field

from xverse_runtime.offload.simulator_clock import Clock, Signal

AT_ONCE = 1 + 1e-12  # flows whose ends are no farther apart end together


@dataclass(eq=False)
class Flow:
    """Bytes on their way from or to the host's memory.

    Args:
        left: bytes still to go.
        fastest: bytes per second that the other end can take.
        traffic: bytes of the memory's traffic for each byte: 3 where one is copied before.
    """

    left: float
    fastest: float
    traffic: float = 1.0
    rate: float = 0.0
    done: Signal = field(default_factory=Signal)


class HostMemory:
    """Bandwidth that all flows share: each gets an equal part, and what one cannot use the others
    get. Rates change whenever a flow begins or ends."""

    def __init__(self, clock: Clock, bandwidth: float) -> None:
        self._clock = clock
        self._bandwidth = bandwidth
        self._flows: list[Flow] = []
        self._updated = 0.0
        self._version = 0
        self._busy = 0.0

    @property
    def busy_s(self) -> float:
        """Traffic so far, in seconds of the whole bandwidth."""
        self._progress()
        return self._busy

    def change(self, bandwidth: float) -> None:
        """From now on it is another."""
        self._progress()
        self._bandwidth = bandwidth
        self._share()

    def seconds_left(self, flow: Flow) -> float:
        """Until a flow ends, at its present rate."""
        self._progress()
        return flow.left / flow.rate

    def start(self, nbytes: float, fastest: float, traffic: float = 1.0) -> Flow:
        """Bytes begin to flow."""
        self._progress()
        flow = Flow(nbytes, fastest, traffic)
        self._flows.append(flow)
        self._share()
        return flow

    def _progress(self) -> None:
        passed = self._clock.now - self._updated
        self._updated = self._clock.now
        for flow in self._flows:
            moved = min(flow.left, flow.rate * passed)
            flow.left -= moved
            self._busy += moved * flow.traffic / self._bandwidth

    def _share(self) -> None:
        """Divide the bandwidth, the least demanding first; then wait for the next to end."""
        free, count = self._bandwidth, len(self._flows)
        for flow in sorted(self._flows, key=lambda one: one.fastest * one.traffic):
            flow.rate = min(flow.fastest, free / count / flow.traffic)
            free -= flow.rate * flow.traffic
            count -= 1
        self._version += 1
        version = self._version
        if self._flows:
            next_s = min(flow.left / flow.rate for flow in self._flows)
            due = [flow for flow in self._flows if flow.left / flow.rate <= next_s * AT_ONCE]
            self._clock.after(next_s, lambda: self._finish(version, due))

    def _finish(self, version: int, ended: list[Flow]) -> None:
        if version != self._version:
            return  # the rates have changed meanwhile
        self._progress()
        self._flows = [flow for flow in self._flows if flow not in ended]
        self._share()
        for flow in ended:
            flow.done.happen()
