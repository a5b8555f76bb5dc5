"""The way that real steps are fastest in."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from random import Random

import pytest

from tests.runtime.offload.simulated import random_machine, small_trace, small_work
from xverse_runtime.offload.modes import MODES_WITH_PREFETCH, STEPS, TRIAL_EVERY, Mode, ModeChooser
from xverse_runtime.offload.policy import ScoreWindow
from xverse_runtime.offload.scheduler import Way, extra_seconds
from xverse_runtime.offload.simulator import Options, Simulation


def run(chooser: ModeChooser, steps: int, seconds: Callable[[Mode, int], float]) -> float:
    """Steps, each of which takes what ``seconds`` says of its mode and number; their sum."""
    total = 0.0
    for number in range(steps):
        took = seconds(chooser.mode, number)
        total += took
        chooser.took(took)
    return total


def costs(scheduled: float, cpu: float, link: float) -> Callable[[Mode, int], float]:
    table: dict[Mode, float] = {"scheduled": scheduled, "cpu": cpu, "link": link}
    return lambda mode, _number: table[mode]


def test_the_schedulers_way_stays_where_it_is_fastest() -> None:
    chooser = ModeChooser()
    total = run(chooser, 2000, costs(1.0, 1.3, 1.4))
    assert chooser.best == "scheduled"
    assert total < 1.02 * 2000  # what trying the others costs
    for mode in ("cpu", "link"):
        assert chooser.seconds(mode) is not None


def test_a_plain_way_that_is_faster_is_taken() -> None:
    """As where a fixed cost, of which the scheduler does not know, eats the gain."""
    for fastest in ("cpu", "link"):
        chooser = ModeChooser()
        prices = {"scheduled": 1.0, "cpu": 2.0, "link": 2.0, fastest: 0.25}
        run(chooser, 2 * TRIAL_EVERY + 4 * STEPS, costs(**prices))
        assert chooser.best == fastest
        assert chooser.mode == fastest


def test_sending_ahead_stops_where_it_clearly_costs_time() -> None:
    """A link and a memory that mind the copies more than anybody counted on."""
    prices: dict[Mode, float] = {"scheduled": 1.2, "waiting": 1.0, "cpu": 1.5, "link": 2.0}
    chooser = ModeChooser(MODES_WITH_PREFETCH)
    run(chooser, 4 * TRIAL_EVERY, lambda mode, _number: prices[mode])
    assert chooser.best == "waiting"
    prices["scheduled"] = 0.9
    run(chooser, 4 * TRIAL_EVERY, lambda mode, _number: prices[mode])
    assert chooser.best == "scheduled"


def test_ten_times_slower_is_not_tried_often() -> None:
    chooser = ModeChooser()
    total = run(chooser, 4000, costs(1.0, 10.0, 40.0))
    assert total < 1.06 * 4000


@pytest.mark.parametrize("cpu", [0.5, 0.9, 0.93, 1.0, 1.3, 4.0])
@pytest.mark.parametrize("link", [0.6, 1.2, 5.0, 20.0, 40.0, 500.0])
def test_never_much_slower_than_the_best_from_the_beginning_on(cpu: float, link: float) -> None:
    """With costs that are roughly known: as they are, or half or twice as much off."""
    price = costs(1.0, cpu, link)
    for wrong in (0.5, 1.0, 2.0):

        def extra(mode: Mode, wrong: float = wrong) -> float:
            return wrong * (price(mode, 0) - 1.0)

        chooser, total = ModeChooser(extra=extra), 0.0
        best = min(1.0, cpu, link)
        for step in range(1, 3000):
            total += (took := price(chooser.mode, step))
            chooser.took(took)
            if step >= 300:
                assert total <= 1.1 * best * step, (step, wrong)


def test_a_way_that_is_better_from_the_start_is_found_within_a_few_tokens() -> None:
    chooser = ModeChooser(extra=lambda mode: {"cpu": 0.05}.get(mode, 0.0))
    run(chooser, 40, costs(1.5, 1.0, 3.0))
    assert chooser.best == "cpu"


WAYS: dict[Mode, Way] = {"scheduled": "both", "cpu": "cpu", "link": "link"}


@pytest.mark.parametrize("seed", range(8))
def test_with_the_scheduler_never_much_slower_than_all_misses_on_the_cpu(seed: int) -> None:
    """On any machine, and when another program takes nine tenths of its processor meanwhile."""
    machine = random_machine(Random(f"modes {seed}"))
    busy = replace(machine, cpu_expert_bandwidth=machine.cpu_expert_bandwidth / 10)
    tokens = small_trace(900)

    def made(way: Way) -> Simulation:
        policy = ScoreWindow.for_model(4, 4)
        return Simulation(small_work(8_000_000), machine, 20, policy, Options(way))

    def extra(mode: Mode) -> float:
        if mode not in ("cpu", "link"):
            return 0.0
        return 4 * extra_seconds(one.scheduler, mode, round(missed))

    one, plain, chooser = made("both"), made("cpu"), ModeChooser(extra=extra)
    total = alone = missed = 0.0
    for number, token in enumerate(tokens):
        if number == 600:
            total = alone = 0.0
            for simulation in (one, plain):
                simulation.hardware.change(busy)
        one.way = WAYS[chooser.mode]
        report = one.run([token])
        seconds, missed = report.seconds, (report.counts.uses - report.counts.hits) / 4
        chooser.took(seconds)
        total += seconds
        alone += plain.run([token]).seconds
        if number in (300, 599, 650, 899):
            assert total <= 1.1 * alone, number


def test_what_changes_is_noticed() -> None:
    """Another program takes the processor: the link is the better way from then on."""
    chooser = ModeChooser()
    run(chooser, 1000, costs(1.0, 1.2, 1.6))
    assert chooser.best == "scheduled"
    run(chooser, 3000, costs(5.0, 5.0, 1.6))
    assert chooser.best == "link"
    run(chooser, 3000, costs(1.0, 1.2, 1.6))
    assert chooser.best == "scheduled"


def test_noise_does_not_make_it_flap() -> None:
    rng = random.Random(3)
    chooser = ModeChooser()
    changes, before = 0, chooser.best
    for _ in range(5000):
        chooser.took(rng.uniform(0.8, 1.2) * (5 if rng.random() < 0.02 else 1))
        changes += chooser.best != before
        before = chooser.best
    assert changes <= 8


def test_the_first_step_of_a_trial_does_not_count() -> None:
    """It pays for what the mode before left undone."""
    chooser = ModeChooser()
    numbers: dict[Mode, int] = {}

    def seconds(mode: Mode, _number: int) -> float:
        numbers[mode] = numbers.get(mode, 0) + 1
        return 100.0 if mode == "cpu" and numbers[mode] == 1 else {"cpu": 0.5}.get(mode, 1.0)

    run(chooser, 2 * TRIAL_EVERY, seconds)
    assert chooser.best == "cpu"


def test_one_mode_is_never_left() -> None:
    chooser = ModeChooser(("scheduled",))
    run(chooser, 500, costs(1.0, 0.1, 0.1))
    assert chooser.mode == chooser.best == "scheduled"
