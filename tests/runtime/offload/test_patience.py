"""Waits that end with an error that names what was awaited."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Sequence

import pytest
import torch

from tests.fake_device import FakeDevice
from tests.runtime.offload.test_offloaded_experts import (
    HIDDEN,
    LAYERS,
    MODEL,
    TOP_K,
    make_offload,
    plainly,
    run,
)
from xverse_runtime.errors import DeviceError
from xverse_runtime.offload.modes import ModeChooser
from xverse_runtime.offload.offloaded_experts import ExpertOffload
from xverse_runtime.offload.patience import CpuWatch, Patience


class Clock:
    """Each nap takes as long as it says, each look a microsecond, and stops when asked to."""

    def __init__(self) -> None:
        self.now = 0.0
        self.naps: list[float] = []

    def __call__(self) -> float:
        self.now += 1e-6
        return self.now

    def sleep(self, seconds: float) -> None:
        self.naps.append(seconds)
        self.now += seconds


def test_what_comes_soon_is_waited_for_without_naps() -> None:
    clock = Clock()
    patience = Patience(30.0, clock, clock.sleep)
    assert patience.lasts(lambda: clock.now > 0.001)
    assert set(clock.naps) == {0.0}
    assert patience.lasts(lambda: clock.now > 20)
    assert clock.naps[-1] > 0


def test_it_ends() -> None:
    clock = Clock()
    assert not Patience(30.0, clock, clock.sleep).lasts(lambda: False)
    assert 30 < clock.now < 31


def test_a_program_that_was_stopped_has_not_waited() -> None:
    clock = Clock()
    looks = 0

    def is_done() -> bool:
        nonlocal looks
        looks += 1
        if looks == 3:
            clock.now += 3600
        return looks > 1000

    assert Patience(30.0, clock, clock.sleep).lasts(is_done)


def over_the_link(device: FakeDevice, slots: int = 0) -> ExpertOffload:
    clock = Clock()
    device.patience = Patience(30.0, clock, clock.sleep)
    return make_offload(MODEL, device, slots=slots, modes=ModeChooser(("link",)))


def token() -> torch.Tensor:
    return torch.randn(1, HIDDEN, generator=torch.Generator().manual_seed(4))


def test_a_copy_that_never_ends_is_named() -> None:
    device = FakeDevice()
    offload = over_the_link(device)
    x = token()
    assert torch.equal(run(MODEL, offload, x), plainly(MODEL, x))
    device.uploads_stick = True
    with pytest.raises(DeviceError) as caught:
        run(MODEL, offload, x)
    assert caught.value.code == "offload.stuck_upload"
    chosen = MODEL.route(0, x).expert_ids[0, :TOP_K].tolist()
    experts = str(caught.value.params["experts"]).split(", ")
    assert sorted(map(int, experts)) == sorted(chosen)
    assert (caught.value.params["layer"], caught.value.params["seconds"]) == ("0", 30)


def test_a_copy_for_the_last_layer_is_named() -> None:
    """Nothing of the offload comes behind it."""
    device = FakeDevice()
    offload = over_the_link(device)
    x = token()
    for layer in range(LAYERS):
        device.uploads_stick = layer == LAYERS - 1
        routed = MODEL.route(layer, x)
        if not device.uploads_stick:
            x = offload.runners[layer](routed, x, None)
            continue
        with pytest.raises(DeviceError) as caught:
            offload.runners[layer](routed, x, None)
        assert caught.value.code == "offload.stuck_upload"
        assert caught.value.params["layer"] == str(layer)


def test_computations_that_never_end_are_named() -> None:
    device = FakeDevice()
    offload = over_the_link(device, slots=3)
    run(MODEL, offload, token())
    device.stick()
    with pytest.raises(DeviceError) as caught:
        run(MODEL, offload, token())
    assert caught.value.code == "offload.stuck_computations"
    assert caught.value.params == {"layer": "0", "seconds": 30}


@pytest.mark.parametrize("tokens", [1, 20])
def test_a_prompt_that_meets_a_stuck_queue(tokens: int) -> None:
    device = FakeDevice()
    offload = over_the_link(device)
    x = torch.randn(20, HIDDEN, generator=torch.Generator().manual_seed(4))
    run(MODEL, offload, x)
    device.uploads_stick = True
    with pytest.raises(DeviceError, match="stuck_upload"):
        run(MODEL, offload, x[:tokens])


def test_what_is_sent_ahead_and_sticks_keeps_nobody_waiting() -> None:
    """Misses are computed by the CPU: only the next copy that is waited for would notice."""
    device = FakeDevice()
    clock = Clock()
    device.patience = Patience(30.0, clock, clock.sleep)
    offload = make_offload(MODEL, device, slots=0, modes=ModeChooser(("cpu",)))
    device.uploads_stick = True
    offload.rules.expect(1, [3])
    assert offload.uploads.send_ahead(1.0, device.mark()) is not None
    x = token()
    assert torch.equal(run(MODEL, offload, x), plainly(MODEL, x))


def watched(
    look_s: float = 0.01, patience_s: float = 0.05
) -> tuple[CpuWatch, list[tuple[int, Sequence[int]]]]:
    told: list[tuple[int, Sequence[int]]] = []
    watch = CpuWatch(
        lambda layer, experts: told.append((layer, experts)), look_s=look_s, patience_s=patience_s
    )
    return watch, told


def wait_for(is_so: Callable[[], bool]) -> None:
    until = time.monotonic() + 30
    while not is_so() and time.monotonic() < until:
        time.sleep(0.01)
    assert is_so()


def test_a_cpu_that_takes_for_ever_is_told_once() -> None:
    watch, told = watched()
    watch.begin(7, [3, 5])
    wait_for(lambda: bool(told))
    time.sleep(0.1)
    assert told == [(7, [3, 5])]


def test_many_short_parts_are_no_long_one() -> None:
    watch, told = watched(look_s=0.02, patience_s=2.0)
    until = time.monotonic() + 0.5
    while time.monotonic() < until:
        watch.begin(1, [2])
        watch.end()
    watch.begin(1, [2])
    watch.end()
    time.sleep(0.1)
    assert not told


def test_its_thread_ends_with_it() -> None:
    def threads() -> set[threading.Thread]:
        return {one for one in threading.enumerate() if one.name == "offload-watch"}

    before = threads()  # of engines that other tests left, and which may end at any time
    watch, _ = watched(patience_s=100.0)
    assert threads() <= before  # only where the CPU has something to do
    watch.begin(0, [1])
    watch.end()
    (its,) = threads() - before
    del watch
    gc.collect()
    wait_for(lambda: not its.is_alive())


def test_the_cpus_part_is_watched() -> None:
    seen: list[tuple[int, list[int]]] = []

    class Seeing(CpuWatch):
        def begin(self, layer: int, experts: Sequence[int]) -> None:
            seen.append((layer, list(experts)))

        def end(self) -> None:
            seen.append((-1, []))

    offload = make_offload(MODEL, FakeDevice(), slots=0, modes=ModeChooser(("cpu",)))
    offload._on_host._watch = Seeing(lambda *_: None)
    run(MODEL, offload, token())
    assert [layer for layer, _ in seen] == [one for layer in range(LAYERS) for one in (layer, -1)]
    assert all(len(experts) == TOP_K for layer, experts in seen if layer >= 0)
