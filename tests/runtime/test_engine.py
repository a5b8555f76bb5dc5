"""The engine: golden continuations, streams, interrupts, the cache, and what it refuses."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.runtime.helpers import GOLDEN, MOE_CHECKPOINTS, expected_cases, expected_tensors_of
from xverse_runtime.config import EngineConfig
from xverse_runtime.engine import Engine
from xverse_runtime.errors import (
    ContextOverflowError,
    DeviceError,
    GenerationError,
    ModelNotFoundError,
    ResourceError,
    UsageError,
    XverseError,
)
from xverse_runtime.types import CancelFlag, GenerationChunk, LoadProgress, SamplingParams

EXACT = EngineConfig(device="cpu", precision="fp32")
GREEDY = SamplingParams(temperature=0, max_new_tokens=24)


@pytest.fixture(scope="module", params=MOE_CHECKPOINTS)
def golden_engine(request: pytest.FixtureRequest) -> tuple[str, Engine]:
    return request.param, Engine.load(GOLDEN / request.param, EXACT)


@pytest.fixture
def engine() -> Engine:
    return Engine.load(GOLDEN / "moe-bin", EXACT)


def tokens_of(chunks: Iterator[GenerationChunk]) -> list[int]:
    return [token for chunk in chunks for token in chunk.token_ids]


def with_changes(params: SamplingParams, **changes: Any) -> SamplingParams:
    return SamplingParams(**(params.__dict__ | changes))


@pytest.mark.parametrize("prompt", range(3))
@pytest.mark.parametrize("penalty", ["1.0", "1.1", "1.3"])
def test_greedy_continuations(golden_engine: tuple[str, Engine], prompt: int, penalty: str) -> None:
    name, engine = golden_engine
    case = expected_cases(name)[prompt]
    ids = engine.encode_prompt(case["text"])
    assert ids == case["prompt_token_ids"]
    params = with_changes(GREEDY, repetition_penalty=float(penalty))
    chunks = list(engine.generate(ids, params))
    produced = [token for chunk in chunks for token in chunk.token_ids]
    assert produced == case["greedy"][penalty]["token_ids"]
    assert "".join(chunk.text for chunk in chunks) == engine.tokenizer.decode(produced)
    ended = produced[-1] == 3
    assert chunks[-1].finish_reason == ("stop" if ended else "length")
    assert [chunk.finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1].usage.prompt_tokens == len(ids)
    assert chunks[-1].usage.completion_tokens == len(produced)


@pytest.mark.parametrize("chunk", [1, 5, 1000])
def test_the_prefill_chunk_changes_nothing(chunk: int) -> None:
    case = expected_cases("moe-bin")[2]
    config = EngineConfig(device="cpu", precision="fp32", prefill_chunk=chunk)
    engine = Engine.load(GOLDEN / "moe-bin", config)
    produced = tokens_of(engine.generate(case["prompt_token_ids"], GREEDY))
    assert produced == case["greedy"]["1.0"]["token_ids"]


def test_logprobs_are_those_of_the_golden_logits(engine: Engine) -> None:
    ids = expected_cases("moe-bin")[0]["prompt_token_ids"]
    first = next(engine.generate(ids, with_changes(GREEDY, logprobs=3, repetition_penalty=1.3)))
    expected = expected_tensors_of("moe-bin")["logits.0"][-1].log_softmax(-1)
    (result,) = first.logprobs
    assert result.logprob == pytest.approx(float(expected[result.token_id]), abs=1e-4)
    assert [token for token, _ in result.top] == expected.topk(3).indices.tolist()


def test_the_common_prefix_is_reused_and_changes_nothing(engine: Engine) -> None:
    case = expected_cases("moe-bin")[2]
    ids = case["prompt_token_ids"]
    fresh = tokens_of(engine.generate(ids, GREEDY))
    branch = [*ids[:100], *range(50, 80)]
    *_, last = engine.generate(branch, GREEDY)
    assert last.usage.cached_tokens == 100
    *again, last = engine.generate(ids, GREEDY)
    assert last.usage.cached_tokens == 100
    assert tokens_of(iter([*again, last])) == fresh
    # a conversation that goes on: prompt, reply, next prompt
    *_, last = engine.generate([*ids, *fresh, 40, 41], GREEDY)
    assert last.usage.cached_tokens == len(ids) + len(fresh) - 1


def test_closing_the_iterator_keeps_the_cache_valid(engine: Engine) -> None:
    case = expected_cases("moe-bin")[1]
    ids, expected = case["prompt_token_ids"], case["greedy"]["1.0"]["token_ids"]
    stream = engine.generate(ids, GREEDY)
    for _ in range(5):
        next(stream)
    stream.close()
    *chunks, last = engine.generate([*ids, *expected[:5]], GREEDY)
    assert last.usage.cached_tokens == len(ids) + 4
    assert tokens_of(iter([*chunks, last]))[:19] == expected[5:]


def test_a_new_generation_ends_the_one_before(engine: Engine) -> None:
    ids = expected_cases("moe-bin")[0]["prompt_token_ids"]
    first = engine.generate(ids, GREEDY)
    next(first)
    assert tokens_of(engine.generate(ids, GREEDY))
    assert list(first) == []


def test_cancelling_during_decode_keeps_what_there_is(engine: Engine) -> None:
    ids = expected_cases("moe-bin")[0]["prompt_token_ids"]
    cancel, seen = CancelFlag(), []
    for chunk in engine.generate(ids, GREEDY, cancel):
        seen.append(chunk)
        if len(seen) == 4:
            cancel.set()
    assert len(seen) == 5
    assert seen[-1].finish_reason == "interrupted"
    assert seen[-1].usage.completion_tokens == 4
    fresh = tokens_of(engine.generate(ids, GREEDY))
    assert fresh == expected_cases("moe-bin")[0]["greedy"]["1.0"]["token_ids"]


def test_cancelling_during_prefill_takes_effect_between_experts(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    from xverse_kernels import reference

    cancel, calls = CancelFlag(), 0
    swiglu = reference.swiglu

    def count_and_cancel(*args: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        cancel.set()
        return swiglu(*args)

    monkeypatch.setattr(reference, "swiglu", count_and_cancel)
    (only,) = engine.generate(expected_cases("moe-bin")[2]["prompt_token_ids"], GREEDY, cancel)
    assert (only.finish_reason, only.token_ids, calls) == ("interrupted", (), 1)


def test_an_interrupt_takes_effect_within_200_ms_on_a_slow_machine(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The best of a few tries, as others load this machine."""
    from xverse_kernels import reference

    swiglu = reference.swiglu

    def slow(*args: Any) -> torch.Tensor:
        time.sleep(0.05)  # an expert of the full-size model on a slow processor
        return swiglu(*args)

    monkeypatch.setattr(reference, "swiglu", slow)
    took: list[float] = []
    while len(took) < 4 and min(took, default=1) >= 0.5:
        cancel = CancelFlag()
        started = time.perf_counter()
        threading.Timer(0.3, cancel.set).start()
        (only,) = engine.generate(expected_cases("moe-bin")[2]["prompt_token_ids"], GREEDY, cancel)
        assert only.finish_reason == "interrupted"
        took.append(time.perf_counter() - started)
    assert min(took) < 0.5


def test_stop_strings_across_tokens_are_not_shown(engine: Engine) -> None:
    ids = expected_cases("moe-bin")[1]["prompt_token_ids"]
    chunks = list(engine.generate(ids, GREEDY))
    text = "".join(chunk.text for chunk in chunks)
    stop = text[6:10]
    assert sum(len(chunk.text) > 3 for chunk in chunks) < len(chunks)
    chunks = list(engine.generate(ids, with_changes(GREEDY, stop=(stop,))))
    assert "".join(chunk.text for chunk in chunks) == text[: text.index(stop)]
    assert chunks[-1].finish_reason == "stop"


def test_a_seed_repeats_a_text_and_is_reported_when_drawn(engine: Engine) -> None:
    ids = expected_cases("moe-bin")[0]["prompt_token_ids"]
    params = SamplingParams(temperature=2.0, max_new_tokens=12)
    *chunks, last = engine.generate(ids, params)
    drawn = tokens_of(iter([*chunks, last]))
    assert tokens_of(engine.generate(ids, with_changes(params, seed=last.seed))) == drawn
    others = [tokens_of(engine.generate(ids, with_changes(params, seed=n))) for n in range(5)]
    assert len({tuple(one) for one in others}) > 1


def test_the_context_ends_the_text_and_says_so() -> None:
    case = expected_cases("moe-bin")[0]
    config = EngineConfig(device="cpu", precision="fp32", context_length=30)
    engine = Engine.load(GOLDEN / "moe-bin", config)
    *_, last = engine.generate(case["prompt_token_ids"], GREEDY)
    assert (last.finish_reason, last.truncated) == ("length", True)
    assert last.usage.completion_tokens == 6
    *_, last = engine.generate(case["prompt_token_ids"], with_changes(GREEDY, max_new_tokens=6))
    assert not last.truncated


def test_a_prompt_that_does_not_fit_is_refused_with_both_numbers(engine: Engine) -> None:
    with pytest.raises(ContextOverflowError) as caught:
        engine.generate([5] * 512)
    assert caught.value.params == {"prompt_tokens": 512, "context_length": 512}
    assert len(list(engine.generate([5] * 511, GREEDY))) == 1


@pytest.mark.parametrize(("ids", "code"), [([], "prompt.empty"), ([1536], "prompt.bad_token")])
def test_impossible_prompts(engine: Engine, ids: list[int], code: str) -> None:
    with pytest.raises(UsageError) as caught:
        engine.generate(ids)
    assert caught.value.code == code


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_logits_are_an_error_not_a_crash(tmp_path: Path, value: float) -> None:
    model = Path(shutil.copytree(GOLDEN / "moe-safetensors", tmp_path / "model"))
    shard = model / "model-00002-of-00002.safetensors"
    tensors = load_file(shard)
    tensors["lm_head.weight"][7, 0] = value
    save_file(tensors, shard)
    engine = Engine.load(model, EXACT)
    for params in (GREEDY, SamplingParams()):
        with pytest.raises(GenerationError) as caught:
            list(engine.generate([5, 6, 7], params))
        assert (caught.value.code, caught.value.params) == ("sampling.non_finite", {"step": 0})


def test_defaults_come_from_the_generation_config(engine: Engine) -> None:
    defaults = engine.default_sampling
    assert (defaults.temperature, defaults.top_k, defaults.top_p) == (0.5, 30, 0.85)
    assert (defaults.repetition_penalty, defaults.max_new_tokens) == (1.1, 2048)


@pytest.mark.parametrize(
    ("content", "temperature"),
    [(None, 1.0), ({"do_sample": False, "temperature": 0.7}, 0.0), ({"temperature": 0.7}, 0.7)],
)
def test_other_generation_configs(
    tmp_path: Path, content: dict[str, Any] | None, temperature: float
) -> None:
    model = Path(shutil.copytree(GOLDEN / "moe-safetensors", tmp_path / "model"))
    (model / "generation_config.json").unlink()
    if content is not None:
        (model / "generation_config.json").write_text(json.dumps(content))
    engine = Engine.load(model, EXACT)
    assert engine.default_sampling.temperature == temperature
    *_, last = engine.generate([5, 6], SamplingParams(temperature=0, max_new_tokens=2))
    assert last.usage.completion_tokens == 2


def test_bad_generation_config_values_are_named(tmp_path: Path) -> None:
    model = Path(shutil.copytree(GOLDEN / "moe-safetensors", tmp_path / "model"))
    (model / "generation_config.json").write_text('{"top_p": "high"}')
    with pytest.raises(XverseError) as caught:
        Engine.load(model, EXACT)
    assert (caught.value.code, caught.value.params["key"]) == ("config.bad_value", "top_p")


@pytest.mark.parametrize(
    ("config", "error", "code"),
    [
        (EngineConfig(device="tpu"), UsageError, "device.unknown"),
        (EngineConfig(device="cpu", backend="nvfuser"), DeviceError, "backend.unavailable"),
        (EngineConfig(device="cpu", precision="fp8"), UsageError, "precision.unsupported"),
        (EngineConfig(device="cpu", precision="int4"), UsageError, "precision.needs_conversion"),
        (EngineConfig(device="cpu", context_length=513), UsageError, "context.too_long"),
        (EngineConfig(device="cpu", context_length=0), UsageError, "context.too_long"),
    ],
)
def test_impossible_wishes(config: EngineConfig, error: type[XverseError], code: str) -> None:
    with pytest.raises(error) as caught:
        Engine.load(GOLDEN / "moe-bin", config)
    assert caught.value.code == code


@pytest.mark.skipif(torch.cuda.is_available(), reason="tells why there is no GPU")
def test_cuda_without_a_gpu_says_why() -> None:
    with pytest.raises(DeviceError) as caught:
        Engine.load(GOLDEN / "moe-bin", EngineConfig(device="cuda"))
    assert caught.value.params["reason"]


def test_too_little_memory_is_refused_before_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xverse_runtime.device.host_memory", lambda: (2000, 1000))
    with pytest.raises(ResourceError) as caught:
        Engine.load(GOLDEN / "moe-bin", EXACT)
    assert caught.value.params["free_bytes"] == 1000


def test_a_directory_without_a_config(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError) as caught:
        Engine.load(tmp_path)
    assert caught.value.code == "model.no_config"


def test_loading_tells_its_progress() -> None:
    seen: list[LoadProgress] = []
    Engine.load(GOLDEN / "moe-bin", EXACT, progress=seen.append)
    done = [one.done_bytes for one in seen]
    assert done == sorted(done)
    assert seen[-1].done_bytes == seen[-1].total_bytes > 0


def test_bf16_weights_stay_views_of_the_file() -> None:
    engine = Engine.load(GOLDEN / "moe-bin", EngineConfig(device="cpu", precision="bf16"))
    assert "precision: bf16" in engine.notes
    assert tokens_of(engine.generate([5, 6, 7], GREEDY))
    expert = engine._decoder._weights.layers[0].mlp.experts[0]  # type: ignore[union-attr]
    maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    address = expert.gate.data_ptr()
    files = [
        m[-1] for m in maps if int(m[0].split("-")[0], 16) <= address < int(m[0].split("-")[1], 16)
    ]
    assert files
    assert "pytorch_model-" in files[0]


def test_small_models_compute_in_one_thread_unless_told_otherwise() -> None:
    before = torch.get_num_threads()
    try:
        Engine.load(GOLDEN / "moe-bin", EngineConfig(device="cpu", threads=2))
        assert torch.get_num_threads() == 2
        engine = Engine.load(GOLDEN / "moe-bin", EXACT)
        assert torch.get_num_threads() == 1
        assert "kernels: reference, 1 CPU thread" in engine.notes
    finally:
        torch.set_num_threads(before)
