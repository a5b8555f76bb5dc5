"""What a simulation found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass
class Counts:
    """Of decoded tokens: experts, and bytes."""

    tokens: int = 0
    uses: int = 0
    hits: int = 0
    on_cpu: int = 0
    on_link: int = 0  # crossed while the layer waited
    awaited: int = 0  # were on their way already
    background: int = 0  # copies, for later tokens
    prefetched: int = 0  # copies one layer ahead
    useful: int = 0  # of those: computed on the GPU then
    cpu_bytes: float = 0.0
    to_gpu_bytes: float = 0.0
    disk_bytes: float = 0.0


@dataclass(frozen=True)
class Report:
    """A simulated run.

    Args:
        seconds: how long it took.
        counts: what happened.
        busy: of each part of the machine, seconds at work; of ``memory`` its traffic over its
            bandwidth.
        waits: seconds that the GPU had nothing to do, by what came then: ``cpu`` results, a copy
            over the ``link``, experts from the ``disk``, or the ``host``'s word that all is done.
    """

    seconds: float
    counts: Counts
    busy: Mapping[str, float]
    waits: Mapping[str, float]

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
        return self.waits.get(cause, 0.0) / self.seconds if self.seconds else 0.0


@dataclass(frozen=True)
class PromptReport:
    """A simulated prompt.

    Args:
        tokens: of it.
        seconds: until its last layer is done.
        copied: bytes of experts that crossed to the GPU.
        busy, waits: as in `Report`.
    """

    tokens: int
    seconds: float
    copied: float
    busy: Mapping[str, float]
    waits: Mapping[str, float]
