"""What is sent a layer ahead: the bookkeeping, when the scheduler is for it, and what it brings."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest

from bench.prefetch import simulated as measured
from tests.runtime.offload.simulated import random_machine, small_trace, small_work
from xverse_runtime.config import ModelConfig
from xverse_runtime.offload.coordinator import Coordinator
from xverse_runtime.offload.costs import GUESSING_S, LinearCost
from xverse_runtime.offload.expert_slots import ExpertSlots
from xverse_runtime.offload.machine import Machine
from xverse_runtime.offload.machines import find_machine
from xverse_runtime.offload.policy import LeastRecentlyUsed, ScoreWindow
from xverse_runtime.offload.prefetch import PLACES, Prefetch, place_of
from xverse_runtime.offload.scheduler import LEAST_RIGHT, MissScheduler
from xverse_runtime.offload.simulator import GUESS_S, Options, Simulation
from xverse_runtime.offload.simulator_compare import WARM_UP, made_up_tokens
from xverse_runtime.offload.simulator_report import Report
from xverse_runtime.offload.synthetic_guesses import DEMO, SyntheticGuesses
from xverse_runtime.store.synthetic import A4_2B

MB = 10**6
LAYER_S = 1.0  # as long as a copy takes, below


def coordinator(*, slots: int = 0, pinned: bool = True) -> Coordinator:
    """Of three layers of eight experts; CPU and link take a second an expert."""
    scheduler = MissScheduler(100, LinearCost(0.0, 100.0), LinearCost(0.0, 100.0))
    book = ExpertSlots(3, 8, slots, LeastRecentlyUsed())
    return Coordinator(book, scheduler, is_pinned=lambda key: pinned)


def test_a_right_guess_that_has_come_is_no_miss() -> None:
    rules = coordinator()
    rules.expect(1, [5, 2])
    assert rules.begin_prefetch(LAYER_S) == (1, 5)
    assert rules.begin_prefetch(LAYER_S) is None  # one at a time
    assert rules.missing(1, [5, 6]) == [(1, 5), (1, 6)]
    rules.prefetch.arrived()
    assert rules.missing(1, [5, 6]) == [(1, 6)]
    assert rules.prefetch.there(1) == 5
    assert rules.prefetch.there(2) is None
    rules.leave(1, {5, 6})
    assert rules.missing(1, [5, 6]) == [(1, 5), (1, 6)]


def test_the_likeliest_that_is_missing_and_can_cross_is_sent() -> None:
    rules = coordinator(slots=2)
    rules.slots.fill([(1, 5)])
    rules.slots.reserve((1, 3))  # on its way already
    rules.expect(1, [5, 3, 2, 4])
    assert rules.begin_prefetch(LAYER_S) == (1, 2)
    assert coordinator(slots=24).begin_prefetch(LAYER_S) is None
    rules = coordinator(pinned=False)
    rules.expect(1, [5])
    assert rules.begin_prefetch(LAYER_S) is None
    assert rules.prefetch.guessed(1) is None


@pytest.mark.parametrize(("busy_s", "waits"), [(0.5, True), (1.5, False)])
def test_what_is_still_coming_is_waited_for_if_that_is_sooner(busy_s: float, waits: bool) -> None:
    rules = coordinator()
    rules.expect(1, [5])
    rules.begin_prefetch(LAYER_S)
    decision = rules.decide([(1, 5)], link_busy_s=busy_s, coming_s=100.0)
    assert decision.awaited == (((1, 5),) if waits else ())
    assert decision.split.cpu == (() if waits else ((1, 5),))


def test_what_came_since_the_device_began_is_computed_there() -> None:
    rules = coordinator()
    rules.expect(1, [5])
    rules.begin_prefetch(LAYER_S)
    missing = rules.missing(1, [5])
    rules.prefetch.arrived()
    assert rules.decide(missing).awaited == ((1, 5),)


def test_what_comes_after_its_layer_is_of_no_use() -> None:
    rules = coordinator()
    rules.expect(1, [5])
    rules.begin_prefetch(LAYER_S)
    rules.leave(1, {5})
    assert rules.prefetch.coming is None
    rules.expect(2, [6])
    assert rules.begin_prefetch(LAYER_S) is None  # the link is not idle
    rules.prefetch.arrived()
    assert rules.missing(1, [5]) == [(1, 5)]
    assert rules.begin_prefetch(LAYER_S) == (2, 6)


def test_a_broken_pass_leaves_nothing_that_counts() -> None:
    """Not even what is under way: another pass may have written to its place when it is chosen."""
    prefetch = Prefetch()
    prefetch.expect((1, 5), send=True)
    prefetch.begin()
    prefetch.forget()
    assert prefetch.coming is None
    prefetch.arrived()
    assert not prefetch.is_there((1, 5))
    prefetch.expect((2, 6), send=True)
    prefetch.forget()
    assert prefetch.begin() is None


@pytest.mark.parametrize("broken_off", [False, True])
def test_a_late_copy_is_not_taken_for_one_of_the_next_token(broken_off: bool) -> None:
    """Guessed again, it is sent again: what another pass wrote to its place is not it."""
    prefetch = Prefetch()
    prefetch.expect((1, 5), send=True)
    prefetch.begin()
    if broken_off:
        prefetch.forget()
    else:
        prefetch.leave(1)
    prefetch.expect((1, 5), send=True)
    assert prefetch.coming is None
    prefetch.arrived()
    assert not prefetch.is_there((1, 5))
    assert prefetch.begin() == (1, 5)
    prefetch.arrived()
    assert prefetch.is_there((1, 5))


def test_what_was_not_sent_in_time_is_not_sent() -> None:
    prefetch = Prefetch()
    prefetch.expect((1, 5), send=True)
    prefetch.expect((2, 6), send=True)
    assert prefetch.begin() == (2, 6)
    prefetch.arrived()
    prefetch.expect((3, 7), send=True)
    prefetch.leave(3)
    assert prefetch.begin() is None


def test_the_link_is_only_looked_at_for_what_is_wanted() -> None:
    prefetch = Prefetch()
    assert not prefetch.is_wanted
    prefetch.expect((1, 5), send=False)
    assert not prefetch.is_wanted
    prefetch.expect((1, 5), send=True)
    assert prefetch.is_wanted
    prefetch.begin()
    assert not prefetch.is_wanted


def test_neighbours_have_places_of_their_own() -> None:
    for layer in range(20):
        places = {place_of(layer + ahead) for ahead in range(PLACES)}
        assert places == set(range(PLACES))


def test_wrong_guesses_are_noticed_and_right_ones_again() -> None:
    """Also while nothing is sent: what would have been sent is judged all the same."""
    rules = coordinator()

    def guess(right: bool) -> bool:
        rules.expect(1, [5])
        sent = rules.begin_prefetch(LAYER_S) is not None
        if sent:
            rules.prefetch.arrived()
        rules.leave(1, {5} if right else {6})
        return sent

    assert guess(True)
    wrong = [guess(False) for _ in range(400)]
    assert 20 < sum(wrong) < 200
    assert not wrong[-1]
    right = [guess(True) for _ in range(400)]
    assert not right[0]
    assert right[-1]
    rules.expect(1, [5], send=False)
    assert rules.begin_prefetch(LAYER_S) is None
    assert rules.prefetch.guessed(1) == (1, 5)


def test_a_share_of_right_guesses_above_the_least_keeps_it_going() -> None:
    draw = Random(4)
    scheduler = MissScheduler(100, LinearCost(0.0, 100.0), LinearCost(0.0, 100.0))
    for _ in range(3000):
        scheduler.observe_guess(draw.random() < LEAST_RIGHT + 0.2)
        assert scheduler.prefetches(LAYER_S)


def test_a_copy_that_takes_many_layers_is_not_begun() -> None:
    """It would be in the way of what those need."""
    rules = coordinator()
    rules.expect(1, [5])
    assert rules.begin_prefetch(0.5) is None
    assert rules.begin_prefetch(LAYER_S) == (1, 5)


@pytest.mark.parametrize("contention", [0.0, 0.2])
def test_a_cpu_that_copies_slow_needs_better_guesses(contention: float) -> None:
    """Where the memory serves both, or the CPU has little to do, it does not matter."""
    sends = {}
    for misses in (0, 1, 4):
        costs = LinearCost(0.0, 100.0), LinearCost(0.0, 100.0)
        scheduler = MissScheduler(100, *costs, contention=contention)
        draw = Random(6)
        for _ in range(2000):
            scheduler.split([(0, one) for one in range(misses)], only="cpu")
            scheduler.observe_guess(draw.random() < 0.5)
        sends[misses] = scheduler.prefetches(LAYER_S)
    assert sends == {0: True, 1: True, 4: contention == 0}


def test_contention_is_what_the_memory_cannot_give() -> None:
    machine = replace(
        find_machine("4060"), host_bandwidth=40.0, cpu_expert_bandwidth=32.0, link_to_gpu=16.0
    )
    assert machine.contention == pytest.approx(0.25)
    assert replace(machine, link_to_gpu=30.0).contention == pytest.approx(0.375)
    assert replace(machine, link_to_gpu=8.0).contention == 0
    assert replace(machine, cpu_expert_bandwidth=10.0).contention == 0


@pytest.mark.parametrize("right", [0.0, 0.5, 0.69, 1.0])
def test_synthetic_guesses_are_right_as_often_as_was_said(right: float) -> None:
    guesses, draw = SyntheticGuesses(64, 6, right), Random(1)
    found = first = 0
    for _ in range(3000):
        chosen = draw.sample(range(64), 6)
        guessed = guesses.of(chosen)
        assert len(set(guessed)) == 6
        found += sum(one in chosen for one in guessed)
        first += guessed[0] in chosen
    assert found / 18000 == pytest.approx(right, abs=0.03)
    assert first / 3000 >= found / 18000


def simulated(machine: Machine, guessed: float | None, slots: int = 24) -> Report:
    one = Simulation(
        small_work(8 * MB), machine, slots, ScoreWindow.for_model(4, 4), Options(guessed=guessed)
    )
    one.run(small_trace(400)[:150])
    return one.run(small_trace(400)[150:])


def test_right_guesses_make_it_faster() -> None:
    """The true shape, where misses are few and the link is wide: what docs/offload.md promises."""
    tokens = made_up_tokens(ModelConfig.from_dict(A4_2B), WARM_UP + 64)
    rates = [
        measured("RTX 4070 12GB", "int4", guessed, tokens).tokens_per_s for guessed in (None, DEMO)
    ]
    assert rates[1] > 1.05 * rates[0]


@pytest.mark.parametrize("seed", range(12))
def test_bad_guesses_cost_little_on_any_machine(seed: int) -> None:
    """Beyond one more router and the host's part in each layer, which a small model feels."""
    machine = random_machine(Random(f"guesses {seed}"))
    without = simulated(machine, None)
    fixed_s = without.counts.tokens * small_work(8 * MB).layers * (GUESS_S + GUESSING_S)
    wrong, right = simulated(machine, 0.0), simulated(machine, 1.0)
    assert wrong.seconds < without.seconds / 0.96 + fixed_s
    assert right.seconds < without.seconds / 0.97 + fixed_s


def test_what_is_sent_and_used_is_counted() -> None:
    wide = replace(find_machine("4070"), link_to_gpu=400e9, host_bandwidth=1000e9)
    counts = simulated(wide, 1.0).counts
    assert 0 < counts.prefetched <= 3 * counts.tokens
    assert counts.useful == counts.prefetched
    nothing = simulated(wide, 1.0, slots=60).counts  # hardly anything is missed: not worth a router
    assert nothing.prefetched == 0
