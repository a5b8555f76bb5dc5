"""What a simulation found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

PARTS = ("gpu", "cpu", "link", "back", "memory", "disk")


@dataclass
class Counts:
    """Of decoded tokens: experts, bytes, and seconds that the GPU waited."""

    tokens: int = 0
    uses: int = 0
    hits: int = 0
    on_cpu: int = 0
    on_link: int = 0  # crossed while the layer waited
    awaited: int = 0  # were on their way already
    background: int = 0  # copies, for later tokens
    prefetched: int = 0  # of them one layer ahead
    useful: int = 0  # of those: were chosen
    cpu_bytes: float = 0.0
    to_gpu_bytes: float = 0.0
    disk_bytes: float = 0.0
    waits: dict[str, float] = field(default_factory=dict)

    def wait(self, cause: str, seconds: float) -> None:
        """The GPU had nothing to do until something came."""
        if seconds > 0:
            self.waits[cause] = self.waits.get(cause, 0.0) + seconds


@dataclass(frozen=True)
class Report:
    """A simulated run.

    Args:
        seconds: how long it took.
        counts: what happened.
        busy: of each part of the machine, seconds at work; of ``memory`` its traffic over its
            bandwidth.
    """

    seconds: float
    counts: Counts
    busy: Mapping[str, float]

    @property
    def tokens_per_s(self) -> float:
        return self.counts.tokens / self.seconds if self.seconds else 0.0

    @property
    def hit_rate(self) -> float:
        """Share of the experts that the GPU had when they were chosen."""
        return self.counts.hits / self.counts.uses if self.counts.uses else 0.0

    def share(self, part: str) -> float:
        """Of the time, at work."""
        return self.busy[part] / self.seconds if self.seconds else 0.0

    def wait_share(self, cause: str) -> float:
        """Of the time, that the GPU waited for this."""
        return self.counts.waits.get(cause, 0.0) / self.seconds if self.seconds else 0.0
