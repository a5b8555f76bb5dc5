"""A profile of what ran on a device, by kernel."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

NAME_WIDTH = 48


class Span(NamedTuple):
    """One launch: its beginning and end in µs."""

    start: float
    end: float
    kernel: str


class KernelTime(NamedTuple):
    """All launches of a kernel, in µs; ``gap``: how long the device had nothing to do before them.

    A launch that begins while another still runs has no gap.
    """

    kernel: str
    launches: int
    busy: float
    gap: float


def by_kernel(spans: Iterable[Span]) -> list[KernelTime]:
    """The kernels, the one that takes longest first; names without their parameters."""
    found: dict[str, KernelTime] = {}
    reached: float | None = None  # until when the device had something to do
    for start, end, kernel in sorted(spans):
        name = kernel.split("(")[0][:NAME_WIDTH]
        _, launches, busy, gap = found.get(name, KernelTime(name, 0, 0.0, 0.0))
        idle = 0.0 if reached is None else max(0.0, start - reached)
        found[name] = KernelTime(name, launches + 1, busy + end - start, gap + idle)
        reached = end if reached is None else max(reached, end)
    return sorted(found.values(), key=lambda one: -one.busy)
