"""What `xverse doctor` predicts is what the simulator finds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache

import pytest

from xverse_runtime.config import ModelConfig
from xverse_runtime.memory_plan import MemoryPlan, Wishes, plan_memory
from xverse_runtime.offload.machine import GIB, Machine
from xverse_runtime.offload.machines import find_machine
from xverse_runtime.offload.simulator_compare import Comparison, made_up_tokens
from xverse_runtime.offload.simulator_report import Report
from xverse_runtime.offload.trace import RoutedToken
from xverse_runtime.plan_places import place_on_gpu
from xverse_runtime.prediction import PROMPT_TOKENS, predict
from xverse_runtime.store.synthetic import A4_2B

MODEL = ModelConfig.from_dict(A4_2B)
WARM_UP, TOKENS = 160, 64
NAMES = ("RTX 4060 8GB", "RTX 4060 Laptop 8GB", "RTX 3060 12GB", "RTX 4070 12GB", "4060 Ti 16GB")
PRECISIONS = ("bf16", "int8", "int4")


@cache
def trace() -> list[RoutedToken]:
    return made_up_tokens(MODEL, WARM_UP + TOKENS)


@cache
def prompt() -> list[RoutedToken]:
    return made_up_tokens(MODEL, PROMPT_TOKENS, text=1)


def simulated(plan: MemoryPlan, machine: Machine) -> tuple[Comparison, Report]:
    comparison = Comparison(plan.placement, machine, trace(), WARM_UP)
    return comparison, comparison.run("score window", "both")


def rows() -> Iterator[object]:
    """What doctor prints for small GPUs; the default context shows for one."""
    for name in NAMES:
        for precision in PRECISIONS:
            quick = precision == "int4" or name == NAMES[0]
            yield pytest.param(name, precision, 4096, marks=() if quick else pytest.mark.slow)
    for precision in PRECISIONS:
        yield pytest.param(NAMES[0], precision, None)


@pytest.mark.parametrize(("name", "precision", "context"), [*rows()])
def test_every_row_is_confirmed(name: str, precision: str, context: int | None) -> None:
    machine = find_machine(name)
    plan = plan_memory(MODEL, machine, Wishes("cuda", precision, context))
    assert plan.placement.offloads
    comparison, report = simulated(plan, machine)
    assert report.tokens_per_s == pytest.approx(plan.prediction.tokens_per_s, rel=0.15)
    assert report.hit_rate == pytest.approx(plan.prediction.hit_rate, abs=0.05)
    if plan.prediction.disk_rate < 0.005:  # prompts from the disk: docs/offload.md
        first_s = comparison.prompt(prompt()).seconds + 1 / report.tokens_per_s
        assert first_s == pytest.approx(plan.prediction.first_token_s, rel=0.15)


SMALL_HOST = replace(
    find_machine("4060"), host_total=15 * GIB, host_free=11 * GIB, pinnable=7 * GIB
)


def test_a_host_with_less_memory_than_the_store() -> None:
    """16 GB of RAM under a store of 13.4 GB."""
    plan = plan_memory(MODEL, SMALL_HOST, Wishes("cuda", "int4", 4096))
    assert 0.005 < plan.prediction.disk_rate < 0.2
    _, report = simulated(plan, SMALL_HOST)
    # The disk is where the time goes, so a point of its rate is several percent.
    assert report.tokens_per_s == pytest.approx(plan.prediction.tokens_per_s, rel=0.25)
    disk_rate = report.counts.disk_bytes / plan.placement.sizes.block / report.counts.uses
    assert disk_rate == pytest.approx(plan.prediction.disk_rate, abs=0.03)


def test_memory_is_not_pinned_where_pages_serve_better() -> None:
    """The system keeps pages that are used; pinned experts stay whether they are used or not."""
    plan = plan_memory(MODEL, SMALL_HOST, Wishes("cuda", "int4", 4096))
    placed = plan.placement
    most = place_on_gpu(
        placed.sizes,
        SMALL_HOST,
        plan.gpu_budget,
        plan.host_budget,
        precision="int4",
        context=4096,
        kv=placed.kv,
    )
    assert most is not None
    assert placed.pinned_experts < most.pinned_experts
    pinned = replace(plan, placement=most, prediction=predict(most, SMALL_HOST))
    assert plan.prediction.tokens_per_s > pinned.prediction.tokens_per_s
    assert simulated(plan, SMALL_HOST)[1].seconds < simulated(pinned, SMALL_HOST)[1].seconds
