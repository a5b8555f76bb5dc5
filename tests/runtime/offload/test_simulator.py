"""Decoding on described machines: by hand, and what must hold on any machine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from random import Random

import pytest

from tests.runtime.offload.simulated import (
    MACHINE,
    WORK,
    random_machine,
    simulation,
    small_trace,
    small_work,
)
from xverse_runtime.offload.costs import COORDINATION_S
from xverse_runtime.offload.machines import find_machine
from xverse_runtime.offload.policy import (
    Belady,
    ExpertPolicy,
    LeastFrequentlyUsed,
    LeastRecentlyUsed,
    ScoreWindow,
)
from xverse_runtime.offload.replay import chosen_keys
from xverse_runtime.offload.scheduler import WAYS, Way
from xverse_runtime.offload.simulator import Options, Simulation
from xverse_runtime.offload.simulator_host import HostExperts
from xverse_runtime.offload.simulator_report import Report
from xverse_runtime.offload.trace import RoutedToken

TOKEN = RoutedToken(((0, 1),))
HOST = COORDINATION_S
LRU, WINDOW = 0, 2  # of `policies`
MB = 10**6


# ── by hand: MACHINE and WORK, one layer. Attention takes 1.5 s, the head 3 s ─────────────────


def test_with_all_experts_nothing_moves() -> None:
    report = simulation(slots=4).run([TOKEN, TOKEN])
    assert report.seconds == pytest.approx(2 * (1.5 + 0.4 + 3))
    assert (report.hit_rate, report.waits) == (1.0, {})
    assert report.counts.to_gpu_bytes == 0
    assert report.busy["gpu"] == pytest.approx(report.seconds)


def test_all_misses_on_the_cpu() -> None:
    """Choice to the host 0.1 s, two experts 5 s, results 0.1 s; meanwhile the GPU works 0.2 s."""
    report = simulation(way="cpu").run([TOKEN])
    assert report.seconds == pytest.approx(1.5 + HOST + 5.2 + 3)
    assert report.waits == {"cpu": pytest.approx(HOST + 5.0)}
    assert (report.busy["cpu"], report.busy["link"]) == (pytest.approx(5), 0)
    assert (report.counts.on_cpu, report.counts.cpu_bytes) == (2, 200)


def test_all_misses_over_the_link() -> None:
    """Choice 0.1 s, copies 0.1 + 2 s and 2 s, the last one's expert 0.1 s."""
    report = simulation(way="link").run([TOKEN])
    assert report.seconds == pytest.approx(1.5 + 0.1 + HOST + 4.1 + 0.1 + 3)
    assert report.waits == {"link": pytest.approx(HOST + 2.0 + 1.9)}
    assert (report.counts.on_link, report.counts.to_gpu_bytes) == (2, 200)


def test_an_upload_in_the_background_makes_the_next_token_a_hit() -> None:
    """The copy begins when the layer is over, and ends before the next token does."""
    machine = replace(MACHINE, host_bandwidth=80.0, cpu_expert_bandwidth=40.0)
    one = simulation(replace(WORK, top_k=1), machine, slots=1, way="cpu")
    first = one.run([RoutedToken(((2,),))])
    assert first.seconds == pytest.approx(1.5 + 0.1 + HOST + 2.5 + 0.1 + 3)
    assert first.busy["link"] == pytest.approx(0.1 + 100 / 50)
    assert first.counts.background == 1
    second = one.run([RoutedToken(((2,),))])
    assert second.hit_rate == 1.0
    assert second.seconds == pytest.approx(1.5 + 0.3 + 3)
    assert second.waits == {}


def test_copies_slow_the_cpu_where_both_need_the_memory() -> None:
    """One expert each. From 0.1 s on the copy takes 30 of 60, and leaves as much to the CPU's 40;
    when that has all of its expert, 4 of the other are missing."""
    machine = replace(MACHINE, host_bandwidth=60.0)
    report = simulation(WORK, machine).run([TOKEN])
    cpu_s = 0.1 + (100 - 4) / 30
    link_s = cpu_s + 4 / 50
    assert (report.counts.on_cpu, report.counts.on_link) == (1, 1)
    assert report.busy["cpu"] == pytest.approx(cpu_s)
    assert report.busy["link"] == pytest.approx(link_s)
    assert report.seconds == pytest.approx(1.5 + 0.1 + HOST + link_s + 0.1 + 3)


def test_the_word_of_the_host_is_waited_for() -> None:
    """A hit, and a host that is slower to say so than the GPU is to compute."""
    machine = replace(MACHINE, copy_latency=0.3)
    one = simulation(WORK, machine, slots=3)
    one.rules.slots.fill([(0, 0), (0, 1)])
    report = one.run([TOKEN])
    assert report.seconds == pytest.approx(1.5 + HOST + 0.6 + 3)
    assert report.waits == {"host": pytest.approx(HOST + 0.2)}


def test_the_disk_comes_first() -> None:
    one = Simulation(
        WORK, MACHINE, 0, LeastRecentlyUsed(), host=HostExperts(WORK.keys, pinned=0, pages=0)
    )
    report = one.run([TOKEN])
    assert report.seconds == pytest.approx(1.5 + 0.1 + HOST + 200 / 10 + 5 + 0.1 + 3)
    assert report.waits == {"disk": pytest.approx(HOST + 20 + 5.2 - 0.2)}
    assert (report.counts.disk_bytes, report.busy["disk"]) == (200, pytest.approx(20))


# ── on any machine ────────────────────────────────────────────────────────────────────────────


def policies(tokens: int) -> list[Callable[[], ExpertPolicy]]:
    return [
        LeastRecentlyUsed,
        LeastFrequentlyUsed,
        lambda: ScoreWindow.for_model(4, 4),
        lambda: Belady(chosen_keys(small_trace(tokens), 4)),
    ]


@pytest.mark.parametrize("seed", range(12))
def test_time_adds_up(seed: int) -> None:
    """No part works longer than the run takes; the GPU works or waits for something all the time;
    every expert is somewhere; a critical copy waits for one block at most."""
    draw = Random(seed)
    machine, slots = random_machine(draw), draw.randint(0, 64)
    work = small_work(block=int(2 ** draw.uniform(20, 25)))
    host = HostExperts(work.keys, draw.randint(0, 64), draw.randint(0, 64), seed)
    policy = draw.choice(policies(80))()
    options = Options(draw.choice(WAYS), guessed=draw.choice([None, 0.0, 0.6, 1.0]))
    one = Simulation(work, machine, slots, policy, options, host)
    for part in (small_trace(80)[:30], small_trace(80)[30:]):
        report = one.run(part)
        assert all(0 <= busy <= report.seconds * (1 + 1e-9) for busy in report.busy.values())
        gpu = report.busy["gpu"] + sum(report.waits.values())
        assert gpu == pytest.approx(report.seconds)
        counts = report.counts
        assert counts.uses == counts.tokens * 16
        assert counts.hits + counts.on_cpu + counts.on_link + counts.awaited == counts.uses
        moved = counts.to_gpu_bytes / work.block
        # a background copy may have begun in the part before, or end in the next
        assert abs(moved - counts.on_link - counts.background - counts.prefetched) <= 1
        assert counts.useful <= counts.prefetched + 1
    slowest = min(machine.link_to_gpu, machine.host_bandwidth / 2 / 3)
    assert one.hardware.link.longest_delay <= machine.copy_latency + work.block / slowest


@pytest.mark.parametrize("way", WAYS)
def test_the_same_again(way: Way) -> None:
    machine = find_machine("3060")

    def run() -> Report:
        one = simulation(small_work(8 * MB), machine, 24, lambda: ScoreWindow.for_model(4, 4), way)
        return one.run(small_trace(100))

    assert run() == run()


def seconds_by_way(seed: int, warm_up: int, tokens: int, policy: int) -> dict[Way, float]:
    draw = Random(f"ways {seed}")
    machine, slots = random_machine(draw), draw.randint(0, 60)
    work = small_work(int(2 ** draw.uniform(20, 25)), before=draw.uniform(1, 8))
    seconds = {}
    for way in WAYS:
        one = simulation(work, machine, slots, policies(warm_up + tokens)[policy], way)
        one.run(small_trace(warm_up + tokens)[:warm_up])
        seconds[way] = one.run(small_trace(warm_up + tokens)[warm_up:]).seconds
    return seconds


@pytest.mark.parametrize("seed", range(15))
def test_hybrid_is_as_fast_as_the_better_pure_way(seed: int) -> None:
    seconds = seconds_by_way(seed, 150, 250, WINDOW)
    assert seconds["both"] <= 1.05 * min(seconds["cpu"], seconds["link"])


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 220))
def test_hybrid_is_as_fast_on_many_machines(seed: int) -> None:
    seconds = seconds_by_way(seed, 200, 400, WINDOW)
    assert seconds["both"] <= 1.05 * min(seconds["cpu"], seconds["link"])


@pytest.mark.slow
def test_policies_that_upload_everything_lose_little_but_where_memory_is_short() -> None:
    """What the CPU computed is uploaded as well, which the scheduler does not count against it:
    with LRU that is every miss. Where CPU and link together ask for no more than the memory has,
    it does not matter (docs/offload.md has the others)."""
    for seed in range(100, 160):
        machine = random_machine(Random(f"ways {seed}"))
        seconds = seconds_by_way(seed, 150, 250, LRU)
        asked = machine.cpu_expert_bandwidth + machine.link_to_gpu
        bound = 1.05 if asked <= machine.host_bandwidth else 1.25
        assert seconds["both"] <= bound * min(seconds["cpu"], seconds["link"])


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("policy", "least"), [(LRU, 16), (WINDOW, 0)], ids=["lru", "window"])
def test_more_slots_never_hurt(seed: int, policy: int, least: int) -> None:
    """LRU from the 16 experts of a token on: with fewer slots than that its uploads are for nothing
    (docs/offload.md)."""
    draw = Random(f"slots {seed}")
    machine, work = random_machine(draw), small_work(int(2 ** draw.uniform(20, 25)))
    times = []
    for slots in (least, *(one for one in (6, 12, 20, 28, 36, 44, 52, 60, 64) if one > least)):
        one = simulation(work, machine, slots, policies(200)[policy])
        one.run(small_trace(200)[:60])
        times.append(one.run(small_trace(200)[60:]).seconds)
    for fewer, more in pairwise(times):
        assert more <= 1.02 * fewer
    assert times[-1] < 0.9 * times[0]


@pytest.mark.parametrize("slower", ["cpu", "link"])
def test_a_cost_that_changes_tenfold_is_followed_both_ways(slower: str) -> None:
    """A side becomes ten times slower, and recovers. What no longer pays is left at once; what pays
    again is found out by trials, which may cost a thousandth of the time."""
    machine = replace(
        find_machine("4060"), host_bandwidth=100e9, cpu_expert_bandwidth=20e9, link_to_gpu=20e9
    )
    field = {"cpu": "cpu_expert_bandwidth", "link": "link_to_gpu"}[slower]
    worse = replace(machine, **{field: 2e9})
    trace, work = small_trace(400), small_work(8 * MB)

    def rates(way: Way, tries: int) -> list[float]:
        one = simulation(work, machine, 16, lambda: ScoreWindow.for_model(4, 4), way)
        one.run(trace[:200])
        found = []
        for now, times in ((machine, 0), (worse, 0), (machine, 0), (machine, tries)):
            one.hardware.change(now)
            one.run(trace[200:240])  # time to notice
            for _ in range(times):
                one.run(trace)
            found.append(one.run(trace[240:340]).tokens_per_s)
        return found

    hybrid, cpu, link = rates("both", 6), rates("cpu", 0), rates("link", 0)
    for ours, *pure in zip(hybrid, cpu, link, strict=True):
        assert ours >= max(pure) / 1.05
    for at_work in (hybrid[0], hybrid[3]):  # both sides at once, before and in the end
        assert at_work > 1.3 * max(cpu[0], link[0])


def test_what_crosses_is_worth_keeping() -> None:
    """It costs nothing more, and is not uploaded once more."""
    seconds = []
    for keeps in (True, False):
        one = Simulation(
            small_work(8 * MB),
            find_machine("3060"),
            32,
            ScoreWindow.for_model(4, 4),
            Options(keeps_crossed=keeps),
        )
        one.run(small_trace(300)[:100])
        seconds.append(one.run(small_trace(300)[100:]).seconds)
    assert seconds[0] < seconds[1]


def test_the_oracle_hits_most() -> None:
    rates = []
    for policy in policies(240):
        one = simulation(small_work(MB), find_machine("4070"), 20, policy, "cpu")
        one.run(small_trace(240)[:80])
        rates.append(one.run(small_trace(240)[80:]).hit_rate)
    assert max(rates) == rates[3] > rates[0] + 0.1


def test_the_journal_tells_every_piece_of_work() -> None:
    one = simulation(small_work(8 * MB), find_machine("4060"), 20, journal=True)
    report = one.run(small_trace(20))
    assert one.journal
    for part in ("gpu", "cpu", "link", "back"):
        spans = [span for span in one.journal if span.part == part]
        ended = sum(span.end - span.start for span in spans)
        assert ended == pytest.approx(report.busy[part], rel=0.02)
        for before, after in pairwise(spans):
            assert before.end <= after.start * (1 + 1e-12)
