"""Prompts in streamed layers: by hand, and against what no pipeline can beat."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from random import Random

import pytest

from tests.runtime.offload.simulated import MACHINE, random_machine, small_trace
from xverse_runtime.config import ModelConfig
from xverse_runtime.memory_plan import Wishes, plan_memory
from xverse_runtime.offload.machines import find_machine
from xverse_runtime.offload.policy import Key
from xverse_runtime.offload.simulator_compare import Comparison, made_up_tokens
from xverse_runtime.offload.simulator_hardware import Hardware
from xverse_runtime.offload.simulator_host import HostExperts
from xverse_runtime.offload.simulator_prefill import PromptSimulation, PromptWork
from xverse_runtime.offload.simulator_report import PromptReport
from xverse_runtime.offload.trace import RoutedToken
from xverse_runtime.store.synthetic import A4_2B

# A token computes 100 FLOPs before its experts and 50 in each; reading never takes longer.
WORK = PromptWork(
    layers=2,
    top_k=2,
    block=10,
    before=1,
    head=1000,
    before_flops=100,
    expert_flops=500,
    piece=100,
    buffer=1,
)
KEYS = [(layer, expert) for layer in range(2) for expert in range(3)]
TOKENS = [RoutedToken(((0, 1), (0, 1))), RoutedToken(((1, 2), (1, 2)))]
LINKED = replace(MACHINE, host_bandwidth=1000.0, link_to_gpu=10.0, copy_latency=0.0)


def prompt(resident: Collection[Key], work: PromptWork = WORK) -> PromptReport:
    host = HostExperts(KEYS, len(KEYS), 0)
    return PromptSimulation(work, Hardware(LINKED), host, resident.__contains__).run(TOKENS)


def test_all_resident_is_computing_alone() -> None:
    """A layer: 0.2 s before the experts, four uses of 0.5 s; then 1 s for the head."""
    report = prompt(KEYS)
    assert report.seconds == pytest.approx(2 * (0.2 + 2) + 1)
    assert (report.copied, report.waits) == (0, {})


def test_copies_hide_behind_the_layer_before() -> None:
    """One expert of each layer streams in 1 s: that of the second while the first computes."""
    report = prompt([key for key in KEYS if key[1] != 1])
    first = 1.2 + 1  # 0.2 s before, 1 s of resident experts, then 1 s of the streamed one
    assert report.seconds == pytest.approx(first + 2.2 + 1)
    assert report.copied == 20


def test_a_buffer_is_filled_again_when_it_is_free() -> None:
    """Nothing resident, one expert to a buffer: copies at 1, 2, 3 s wait for no buffer, and uses
    take 0.5, 1 and 0.5 s; the fourth fills the buffer of the second, free at 3 s."""
    report = prompt([])
    # experts of layer 0 end at 1.5, 3 and 3.5 s; those of layer 1 come at 4, 5 and 6 s
    assert report.seconds == pytest.approx(6 + 0.5 + 1)
    assert report.waits["link"] == pytest.approx(0.8 + 0.5 + 0.0 + 0.3 + 0.5, abs=1e-6)
    assert report.copied == 60


def test_pieces_stream_what_each_of_them_needs() -> None:
    report = prompt([], replace(WORK, piece=1))
    assert report.copied == 80  # both need expert 1 of each layer


@pytest.mark.parametrize("seed", range(20))
def test_within_a_third_of_the_larger_of_link_and_gpu(seed: int) -> None:
    draw = Random(f"prompt {seed}")
    machine = replace(random_machine(draw), gpu_flops=draw.uniform(2e12, 1e14))
    block = int(2 ** draw.uniform(20, 25))
    work = PromptWork(
        layers=4,
        top_k=4,
        block=block,
        before=5 * block,
        head=5 * block,
        before_flops=10 * block,
        expert_flops=4 * block,
        piece=2048,
        buffer=draw.choice((2, 8)),
    )
    keys = [(layer, expert) for layer in range(4) for expert in range(16)]
    resident = frozenset(draw.sample(keys, draw.randint(0, 64)))
    hardware, host = Hardware(machine), HostExperts(keys, 64, 0)
    report = PromptSimulation(work, hardware, host, resident.__contains__).run(small_trace(200))
    assert report.copied == pytest.approx((64 - len(resident)) * block)
    gpu, link = report.busy["gpu"], report.busy["link"]
    assert max(gpu, link) <= report.seconds * (1 + 1e-9)
    # The first copy has nothing to hide behind, nor have the last experts and the head.
    ends = work.buffer * block * 4 / machine.link_to_gpu + gpu / 4
    assert report.seconds <= min(1.05 * max(gpu, link) + ends, 1.3 * max(gpu, link))


@pytest.mark.parametrize("precision", ["int4", "int8"])
@pytest.mark.parametrize("name", ["4060", "3060", "4070"])
def test_the_true_shape_within_a_third(name: str, precision: str) -> None:
    """A prompt of 512 tokens beside what its experts take on the link or the GPU alone."""
    model, machine = ModelConfig.from_dict(A4_2B), find_machine(name)
    wishes = Wishes(device="cuda", precision=precision, context=4096, kv="bf16")
    tokens = made_up_tokens(model, 512)
    placement = plan_memory(model, machine, wishes).placement
    comparison = Comparison(placement, machine, made_up_tokens(model, 100), 99)
    comparison.run("score window", "both")  # whose experts are still there
    report = comparison.prompt(tokens)
    assert report.seconds <= 1.3 * max(report.busy["gpu"], report.busy["link"])
