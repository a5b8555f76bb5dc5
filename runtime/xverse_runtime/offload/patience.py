"""Waits that end: what takes half a minute is not going to come, and an error names it.

Time is counted in short steps, so a program that was stopped meanwhile has not waited.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from xverse_runtime.errors import DeviceError

PATIENCE_S = 30.0
SPIN_S = 5e-3  # a layer's choice comes sooner; whoever waits longer need not notice at once
NAP_S = 1e-4
LONGEST_STEP_S = 0.1  # counted between two looks
LOOK_S = 5.0  # how often the CPU's part is looked after


class Awaited(NamedTuple):
    """What a wait is for: a layer, and the experts that are on their way for it."""

    layer: int | None = None
    experts: tuple[int, ...] = ()


@dataclass(frozen=True)
class Patience:
    """How long to wait; clock and sleep can be others in tests."""

    seconds: float = PATIENCE_S
    clock: Callable[[], float] = time.perf_counter
    sleep: Callable[[float], None] = time.sleep

    def lasts(self, is_done: Callable[[], bool]) -> bool:
        """Wait until it is done; false when patience is over. Other threads run meanwhile."""
        waited, before = 0.0, self.clock()
        while not is_done():
            self.sleep(0.0 if waited < SPIN_S else NAP_S)
            now = self.clock()
            waited += min(now - before, LONGEST_STEP_S)
            before = now
            if waited > self.seconds:
                return is_done()
        return True


def await_computations(
    patience: Patience,
    is_done: Callable[[], bool],
    uploads_are_done: Callable[[], bool],
    awaited: Awaited,
) -> None:
    """Wait for a point in the queue of computations.

    Raises:
        DeviceError: ``offload.stuck_computations``, or ``offload.stuck_upload`` where an upload is
            what they wait for.
    """
    if patience.lasts(is_done):
        return
    if not uploads_are_done():
        raise _stuck_upload(patience, awaited)
    raise DeviceError(
        "offload.stuck_computations", layer=_named(awaited.layer), seconds=round(patience.seconds)
    )


def await_upload(patience: Patience, is_done: Callable[[], bool], awaited: Awaited) -> None:
    """Wait for a copy of experts to the device.

    Raises:
        DeviceError: ``offload.stuck_upload``.
    """
    if not patience.lasts(is_done):
        raise _stuck_upload(patience, awaited)


def _stuck_upload(patience: Patience, awaited: Awaited) -> DeviceError:
    return DeviceError(
        "offload.stuck_upload",
        layer=_named(awaited.layer),
        experts=", ".join(map(str, awaited.experts)) or "?",
        seconds=round(patience.seconds),
    )


def _named(layer: int | None) -> str:
    return "?" if layer is None else str(layer)


class _Work(NamedTuple):
    layer: int
    experts: Sequence[int]


class _Shared:
    """What thread and owner both see; the thread must not keep the owner alive."""

    def __init__(self) -> None:
        self.work: _Work | None = None
        self.stop = threading.Event()


class CpuWatch:
    """Tells when the CPU's part of one layer takes for ever.

    It cannot be broken off from outside, and a slow disk may be all that is wrong with it: so it is
    told, once, and goes on.
    """

    def __init__(
        self,
        tell: Callable[[int, Sequence[int]], None],
        *,
        patience_s: float = PATIENCE_S,
        look_s: float = LOOK_S,
    ) -> None:
        """``tell`` hears of the layer and its experts, in a thread of its own."""
        self._shared = _Shared()
        self._start: Callable[[], None] | None = threading.Thread(
            target=_look_after,
            args=(self._shared, tell, patience_s, look_s),
            name="offload-watch",
            daemon=True,
        ).start
        weakref.finalize(self, self._shared.stop.set)

    def begin(self, layer: int, experts: Sequence[int]) -> None:
        """The CPU begins with these."""
        if self._start is not None:
            self._start()
            self._start = None
        self._shared.work = _Work(layer, experts)

    def end(self) -> None:
        """It is through with them."""
        self._shared.work = None


def _look_after(
    shared: _Shared,
    tell: Callable[[int, Sequence[int]], None],
    patience_s: float,
    look_s: float,
) -> None:
    seen, waited_s = shared.work, 0.0
    while not shared.stop.wait(look_s):
        work = shared.work
        waited_s = waited_s + look_s if work is not None and work is seen else 0.0
        seen = work
        if work is not None and waited_s >= patience_s:
            tell(work.layer, work.experts)
            return
