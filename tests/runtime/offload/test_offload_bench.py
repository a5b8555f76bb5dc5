"""The measurement that a GPU is needed for, on the fake device and a tiny shape: it runs, and what
it reports is consistent."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import bench.gpu.offload as measurement
from bench.gpu.traced import TracedKernels, synthetic_tokens
from bench.table import Report
from tests.fake_device import FakeDevice
from tests.runtime.offload.test_offloaded_engine import MACHINE, SecondHand, placement
from xverse_kernels.backend import select_backend
from xverse_runtime.config import ModelConfig
from xverse_runtime.offload.setup import ModelPlan
from xverse_runtime.store.synthetic import A4_2B

CPU = torch.device("cpu")
TINY = ModelConfig.from_dict(
    {
        **A4_2B,
        "num_hidden_layers": 2,
        "hidden_size": 64,
        "intermediate_size": 32,
        "num_attention_heads": 2,
        "vocab_size": 300,
    }
)


@pytest.fixture
def kernels() -> TracedKernels:
    return TracedKernels(select_backend("auto", CPU), TINY, CPU)


@pytest.mark.parametrize("graphs", [False, True])
def test_a_point(kernels: TracedKernels, graphs: bool) -> None:
    made = replace(placement(TINY, 40, staged=4), context=128)
    point = measurement.measure_point(
        TINY,
        ModelPlan(made, MACHINE),
        measurement.host_blocks(TINY, "int4"),
        FakeDevice(),
        kernels,
        SecondHand() if graphs else None,  # type: ignore[arg-type]
        dtype=torch.float32,
        warm=12,
        steps=20,
        prompt=100,
    )
    statistics = point["statistics"]
    uses = statistics["hits"] + statistics["on_cpu"] + statistics["over_link"]
    assert uses == 20 * 2 * TINY.top_k
    assert 0.2 < point["hit_rate"] < 0.95
    assert statistics["prompt_bytes"] == 0  # the prompt comes after what is counted
    assert point["tokens_per_s"] > 0
    assert point["predicted_tokens_per_s"] > 0
    assert not point["adjusted"]
    # How many are sent depends on how long things take here; all of them may have been right.
    assert 0 < statistics["prefetched_used"] <= statistics["prefetched"] <= 20


def test_routing_is_the_traces(kernels: TracedKernels) -> None:
    from xverse_kernels.types import Norm

    x, norm = torch.randn(1, 64), Norm(torch.ones(64), 1e-6)
    router = torch.randn(64, 64)
    for token in synthetic_tokens(TINY, 3):
        kernels.follow(token)
        for layer in range(2):
            routed = kernels.route(x, norm, router, TINY.top_k, TINY.num_shared_experts)
            expected = [*token.experts[layer][: TINY.top_k], 64, 65]
            assert routed.expert_ids.tolist() == [expected]
            listed = routed.logits.softmax(-1).topk(12).indices[0].tolist()
            assert sorted(listed) == sorted(token.experts[layer])


def test_guesses_follow_each_layer(kernels: TracedKernels) -> None:
    from xverse_kernels.types import Norm

    kernels.guess(1.0)
    x, norm, router = torch.randn(1, 64), Norm(torch.ones(64), 1e-6), torch.randn(64, 64)
    for token in synthetic_tokens(TINY, 3):
        kernels.follow(token)
        for layer in (0, 1, 1):  # the first, a guess at the second, and the second
            routed = kernels.route(x, norm, router, TINY.top_k, TINY.num_shared_experts)
            assert routed.expert_ids.tolist() == [[*token.experts[layer][: TINY.top_k], 64, 65]]


def test_what_was_measured_is_not_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []

    def point(what: str, cap: int, context: int, *_: object) -> dict[str, object]:
        asked.append((what, cap, context))
        if cap == 12:
            raise RuntimeError("out of luck")
        return {"tokens_per_s": 2.0 if what == "cpu" else 30.0}

    monkeypatch.setattr(measurement, "_measure", point)
    monkeypatch.setattr(measurement, "measure_machine", lambda _device: MACHINE)
    monkeypatch.setattr(measurement, "host_blocks", lambda *_: [])
    file = tmp_path / "points.json"
    now = 0.0

    def clock() -> float:
        nonlocal now
        now += 60.0
        return now

    def run(minutes: float) -> list[dict[str, object]]:
        report = Report("offload", tmp_path, [])
        measurement.measure_offload(report, ["cpu", "int4"], 28, file, minutes, clock)
        found: list[dict[str, object]] = json.loads(file.read_text())
        return found

    assert len(run(minutes=4.5)) == 4
    assert "the same command goes on" in capsys.readouterr().out
    assert asked == [("int4", cap, context) for cap in (8, 12) for context in (4096, 512)]
    assert len(run(minutes=100.0)) == 11
    first, again = asked[:4], asked[4:]
    # what failed is tried again, nothing else
    assert [one for one in again if one in first] == [("int4", 12, 4096), ("int4", 12, 512)]
    assert len(set(asked)) == 11
    assert sum("failed" in one for one in json.loads(file.read_text())) == 2
    shown = capsys.readouterr().out
    assert "int4: 15.0 x" in shown
    assert "out of luck" in shown


def test_the_cpu_alone() -> None:
    blocks = measurement.host_blocks(TINY, "int4")
    assert measurement.cpu_tokens_per_s(TINY, blocks, 64) > 0
