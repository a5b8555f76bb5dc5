"""Virtual time, and the parts of a machine, on cases that can be added up by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.runtime.offload.simulated import MACHINE
from xverse_runtime.offload.simulator_clock import Clock, Process, Signal, all_of
from xverse_runtime.offload.simulator_hardware import Copy, Hardware, Lane, Link, Meter
from xverse_runtime.offload.simulator_host import HostExperts
from xverse_runtime.offload.simulator_memory import HostMemory


def test_processes_wait_for_one_another() -> None:
    clock, times = Clock(), []

    def first() -> Process:
        yield clock.delay(2)
        times.append(clock.now)

    def second(other: Signal) -> Process:
        yield clock.delay(1)
        yield other
        yield all_of([])
        yield all_of([clock.delay(3), clock.delay(1)])
        times.append(clock.now)

    clock.run_until(clock.start(second(clock.start(first()))))
    assert times == [2, 5]


def test_what_is_due_together_happens_in_order() -> None:
    clock, seen = Clock(), []
    for name in "abc":
        clock.after(1, lambda name=name: seen.append(name))  # type: ignore[misc]
    clock.run_until(clock.delay(1))
    assert seen == ["a", "b", "c"]


def test_a_lane_does_one_thing_after_the_other_and_knows_what_it_waited_for() -> None:
    clock, waits = Clock(), []
    lane = Lane(clock, Meter(clock, "gpu"), lambda cause, seconds: waits.append((cause, seconds)))
    lane.run(2, "a", "nothing")
    second = lane.run(3, "b", "nothing")
    clock.run_until(second)
    assert clock.now == 5
    clock.run_until(clock.delay(4))
    clock.run_until(lane.run(1, "c", "cpu"))
    assert (clock.now, lane.meter.busy_s, waits) == (10, 6, [("cpu", 4)])


def test_flows_share_the_memory_until_one_ends() -> None:
    clock = Clock()
    memory = HostMemory(clock, 100)
    first = memory.start(100, fastest=60)
    second = memory.start(50, fastest=60)
    clock.run_until(second.done)  # 50 a second each
    assert clock.now == pytest.approx(1)
    clock.run_until(first.done)  # what is left, alone at 60
    assert clock.now == pytest.approx(1 + 50 / 60)
    assert memory.busy_s == pytest.approx(1.5)


def test_what_one_cannot_use_the_other_gets() -> None:
    clock = Clock()
    memory = HostMemory(clock, 100)
    slow, fast = memory.start(30, fastest=10), memory.start(900, fastest=1000)
    clock.run_until(clock.delay(1))
    assert (slow.rate, fast.rate) == (10, 90)


def test_staged_bytes_cost_the_memory_threefold() -> None:
    clock = Clock()
    memory = HostMemory(clock, 90)
    staged, plain = memory.start(15, 50, traffic=3), memory.start(450, 500)
    clock.run_until(staged.done)  # half of the memory's 90, in threes
    assert clock.now == pytest.approx(1)
    assert plain.left == pytest.approx(450 - 45)


@given(st.lists(st.tuples(st.floats(0, 5), st.floats(1, 100), st.floats(1, 80)), max_size=8))
def test_the_memory_is_never_faster_than_it_is(flows: list[tuple[float, float, float]]) -> None:
    clock = Clock()
    memory = HostMemory(clock, 50)
    ends = []

    def flow(start: float, nbytes: float, fastest: float) -> Process:
        yield clock.delay(start)
        begun = clock.now
        yield memory.start(nbytes, fastest).done
        assert clock.now - begun >= nbytes / fastest * (1 - 1e-9)

    ends = [clock.start(flow(*one)) for one in flows]
    clock.run_until(all_of(ends))
    total = sum(nbytes for _, nbytes, _ in flows)
    assert memory.busy_s == pytest.approx(total / 50)
    assert memory.busy_s <= clock.now * (1 + 1e-9)


def link_with(background: list[Copy]) -> tuple[Hardware, Link]:
    hardware = Hardware(MACHINE)
    hardware.link.next_background = lambda: background.pop(0) if background else None
    return hardware, hardware.link


def test_critical_copies_wait_for_one_background_copy_at_most() -> None:
    waiting = [Copy(100, "b", Signal()) for _ in range(3)]
    hardware, link = link_with(list(waiting))
    clock = hardware.clock
    link.wake()
    clock.run_until(clock.delay(0.5))
    critical = [Copy(100, "c", Signal(), latency=0.1), Copy(100, "c", Signal())]
    assert link.busy_s == pytest.approx(1.5)
    link.copy_now(critical)
    clock.run_until(waiting[0].arrived)
    assert clock.now == pytest.approx(2)
    clock.run_until(critical[0].arrived)
    assert clock.now == pytest.approx(4.1)
    clock.run_until(critical[1].arrived)
    assert clock.now == pytest.approx(6.1)
    clock.run_until(waiting[2].arrived)
    assert clock.now == pytest.approx(10.1)
    assert link.longest_delay == pytest.approx(1.5)
    assert link.moved == 500


def test_the_host_knows_pinned_experts_pages_and_the_disk() -> None:
    keys = [(0, expert) for expert in range(10)]
    host = HostExperts(keys, pinned=4, pages=3)
    assert sum(host.is_pinned(key) for key in keys) == 4
    assert [host.traffic(key) for key in keys].count(3.0) == 6
    pageable = [key for key in keys if not host.is_pinned(key)]
    held = [key for key in pageable if not HostExperts(keys, 4, 3).touch(key)]
    assert len(held) == 3
    absent = next(key for key in pageable if key not in held)
    assert host.touch(absent)
    assert not host.touch(absent)
    assert host.touch(held[0])  # it was used longest ago
    assert not host.touch(held[2])
    assert not any(HostExperts(keys, 10, 0).touch(key) for key in keys)
