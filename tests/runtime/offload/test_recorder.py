"""Recording a run: what the file says is what the routers chose."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from tests.runtime.helpers import GOLDEN, load_decoder
from xverse_runtime.config import EngineConfig
from xverse_runtime.demo import demo_directory
from xverse_runtime.engine import Engine
from xverse_runtime.errors import UsageError
from xverse_runtime.offload.expert_slots import ExpertSlots
from xverse_runtime.offload.policy import LeastRecentlyUsed
from xverse_runtime.offload.recorder import RoutingRecorder
from xverse_runtime.offload.replay import replay
from xverse_runtime.offload.trace import tokens_of
from xverse_runtime.offload.trace_file import TraceReader
from xverse_runtime.types import Message, SamplingParams

GREEDY = SamplingParams(temperature=0, max_new_tokens=12)


@pytest.fixture(scope="module")
def demo() -> Engine:
    return Engine.load(demo_directory(), EngineConfig(device="cpu", prefill_chunk=8))


def test_a_trace_is_what_the_routers_said(tmp_path: Path) -> None:
    decoder, cache = load_decoder(GOLDEN / "moe-bin")
    logits: dict[int, list[torch.Tensor]] = {}
    recorder = RoutingRecorder(tmp_path / "t", decoder.config, "golden", runners_up=1)

    def both(layer: int, seen: torch.Tensor) -> None:
        logits.setdefault(layer, []).append(seen.clone())
        recorder(layer, seen)

    decoder.forward([7, 8, 9, 10], cache, observer=both)
    decoder.forward([11], cache, observer=both)
    recorder.close()
    reader = TraceReader(tmp_path / "t")
    passes = list(reader)
    assert [len(one.tokens) for one in passes] == [4, 1]
    config = decoder.config
    assert (reader.header.layers, reader.header.top_k) == (config.num_layers, config.top_k)
    assert reader.header.listed == config.top_k + 1
    for place, token in enumerate(tokens_of(passes)):
        for layer in range(config.num_layers):
            expected = torch.cat(logits[layer])[place].softmax(-1).topk(config.top_k + 1)
            assert list(token.experts[layer]) == expected.indices.tolist()
            assert token.probabilities is not None
            assert token.probabilities[layer] == pytest.approx(expected.values.tolist(), abs=1e-5)


def test_a_pass_that_is_broken_off_leaves_nothing(tmp_path: Path) -> None:
    decoder, cache = load_decoder(GOLDEN / "moe-bin")
    recorder = RoutingRecorder(tmp_path / "t", decoder.config, "golden")

    def stop_at_the_second_layer() -> None:
        if len(recorder._seen) == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        decoder.forward([7, 8], cache, between=stop_at_the_second_layer, observer=recorder)
    decoder.forward([7], cache, observer=recorder)
    recorder.close()
    assert [len(one.tokens) for one in TraceReader(tmp_path / "t")] == [1]


def test_recording_the_demo(demo: Engine, tmp_path: Path) -> None:
    prompt = demo.encode_chat([Message("user", "What is a router?")])
    plain = [id for chunk in demo.generate(prompt, GREEDY) for id in chunk.token_ids]
    demo._cache.truncate(0)
    recorder = demo.record_routing(tmp_path / "t")
    recorded = [id for chunk in demo.generate(prompt, GREEDY) for id in chunk.token_ids]
    recorder.close()
    demo._decoder.observer = None
    assert recorded == plain
    reader = TraceReader(tmp_path / "t")
    sizes = [len(one.tokens) for one in reader]
    # The prompt in chunks of 8, then one by one; the last token of a reply is never computed.
    assert sum(sizes) == len(prompt) + len(plain) - 1
    assert sizes[: len(prompt) // 8] == [8] * (len(prompt) // 8)
    assert sizes[-(len(plain) - 1) :] == [1] * (len(plain) - 1)
    header = reader.header
    assert (header.model, header.top_k, header.listed) == (demo.model_name, 4, 10)


def test_a_recorded_trace_can_be_replayed(demo: Engine, tmp_path: Path) -> None:
    recorder = demo.record_routing(tmp_path / "t")
    list(demo.generate(demo.encode_chat([Message("user", "什么是专家？")]), GREEDY))
    recorder.close()
    demo._decoder.observer = None
    reader = TraceReader(tmp_path / "t")
    header, tokens = reader.header, tokens_of(reader)
    rates = []
    for slots in (4, 8, 12, 16):
        book = ExpertSlots(
            header.layers, header.experts, header.layers * slots, LeastRecentlyUsed()
        )
        rates.append(replay(tokens, book, header.top_k).rate)
    assert rates == sorted(rates)
    assert 0 < rates[0] < rates[-1] < 1


def test_models_without_experts_are_refused(tmp_path: Path) -> None:
    shutil.copytree(GOLDEN / "dense-linear", tmp_path / "dense")
    for file in demo_directory().glob("tokenizer*"):
        shutil.copy(file, tmp_path / "dense")
    engine = Engine.load(tmp_path / "dense", EngineConfig(device="cpu", precision="fp32"))
    with pytest.raises(UsageError, match=r"trace\.no_experts"):
        engine.record_routing(tmp_path / "t")
    assert not (tmp_path / "t").exists()
