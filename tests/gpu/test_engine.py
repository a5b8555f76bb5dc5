"""The engine on a GPU: the same replies as on the CPU, with graphs and without."""

from __future__ import annotations

from contextlib import suppress

import pytest
import torch

pytest.importorskip("sentencepiece")  # the demo's tokenizer; a plain checkout can lack it

from xverse_runtime.config import EngineConfig
from xverse_runtime.demo import demo_directory
from xverse_runtime.engine import Engine
from xverse_runtime.errors import ResourceError
from xverse_runtime.types import CancelFlag, Message, SamplingParams

QUESTIONS = ["What is a mixture of experts?", "你好", "How do I quit?"]
GREEDY = SamplingParams(temperature=0, max_new_tokens=48)


def load(**settings: object) -> Engine:
    return Engine.load(demo_directory(), EngineConfig(**settings))  # type: ignore[arg-type]


def reply(engine: Engine, question: str, params: SamplingParams = GREEDY) -> list[int]:
    ids = engine.encode_chat([Message("user", question)])
    return [token for chunk in engine.generate(ids, params) for token in chunk.token_ids]


def agreement(one: list[int], other: list[int]) -> float:
    same = sum(a == b for a, b in zip(one, other, strict=False))
    return same / max(len(one), len(other))


def test_the_gpu_answers_like_the_cpu() -> None:
    gpu, cpu = load(device="cuda"), load(device="cpu")
    assert any("triton" in note for note in gpu.notes)
    for question in QUESTIONS:
        assert agreement(reply(gpu, question), reply(cpu, question)) > 0.9


def test_fp32_on_the_gpu_is_exact() -> None:
    gpu, cpu = load(device="cuda", precision="fp32"), load(device="cpu", precision="fp32")
    for question in QUESTIONS:
        assert reply(gpu, question) == reply(cpu, question)


def test_fp16_answers_like_bf16() -> None:
    half, brain = load(device="cuda", precision="fp16"), load(device="cuda", precision="bf16")
    for question in QUESTIONS:
        assert agreement(reply(half, question), reply(brain, question)) > 0.9


def test_a_cache_in_int8_answers_like_one_in_bf16() -> None:
    rounded, plain = load(device="cuda", kv="int8"), load(device="cuda")
    without_graphs = load(device="cuda", kv="int8", cuda_graph=False)
    for question in QUESTIONS:
        first = reply(rounded, question)
        assert agreement(first, reply(plain, question)) > 0.9
        assert reply(without_graphs, question) == first


def test_several_replies_at_once() -> None:
    engine = load(device="cuda")
    prompts = [engine.encode_chat([Message("user", one)]) for one in QUESTIONS * 3]
    expected = [reply(engine, one) for one in QUESTIONS * 3]
    found: list[list[int]] = [[] for _ in prompts]
    for number, chunk in engine.generate_batch(prompts, GREEDY, sequences=4):
        found[number] += chunk.token_ids
    for one, other in zip(found, expected, strict=True):
        assert agreement(one, other) > 0.9


def test_graphs_change_nothing() -> None:
    graphs, plain = load(device="cuda"), load(device="cuda", cuda_graph=False)
    sampled = SamplingParams(temperature=0.8, top_k=20, max_new_tokens=48, seed=5)
    for question in QUESTIONS:
        for params in (GREEDY, sampled):
            first = reply(graphs, question, params)
            assert reply(plain, question, params) == first
            assert reply(graphs, question, params) == first


def test_a_broken_off_reply_leaves_the_cache_usable() -> None:
    engine = load(device="cuda")
    expected = reply(engine, QUESTIONS[0])
    ids = engine.encode_chat([Message("user", QUESTIONS[0])])
    for stop_after in (1, 2, 5):
        cancel = CancelFlag()
        seen = []
        for chunk in engine.generate(ids, GREEDY, cancel):
            seen += chunk.token_ids
            if len(seen) == stop_after:
                cancel.set()
        assert seen == expected[:stop_after]
        assert reply(engine, QUESTIONS[0]) == expected


def test_a_prompt_in_small_pieces() -> None:
    """As when memory is short: attention to what came before, from the second piece on."""
    whole, pieces = load(device="cuda"), load(device="cuda", prefill_chunk=64)
    question = " ".join(QUESTIONS * 12)
    ids = whole.encode_chat([Message("user", question)])
    assert len(ids) > 3 * 64
    expected = whole._decoder.forward(ids, whole._cache).float()
    found = pieces._prefill(ids, pieces._cache).float()
    assert float((found - expected).norm() / expected.norm()) < 0.02
    for one in QUESTIONS:
        assert agreement(reply(pieces, one), reply(whole, one)) > 0.9


def test_a_shorter_context_moves_the_cache_and_nothing_else() -> None:
    engine, plain = load(device="cuda"), load(device="cuda")
    ids = engine.encode_chat([Message("user", QUESTIONS[0])])
    expected, found = reply(plain, QUESTIONS[0]), []
    pool = engine._cache.pool
    for chunk in engine.generate(ids, GREEDY):
        found += chunk.token_ids
        if len(found) == 5:  # as the ladder does, with graphs captured and a step under way
            pool.leave(len(ids) + 8, capacity=pool.capacity - 64)
            engine._ladder.moved()
    assert found == expected


def test_a_cache_that_is_rounded_in_the_middle() -> None:
    told: list[str] = []
    engine = Engine.load(
        demo_directory(),
        EngineConfig(device="cuda"),
        on_adjustment=lambda code, _facts: told.append(code),
    )
    expected, found = reply(engine, QUESTIONS[0]), []
    ids = engine.encode_chat([Message("user", QUESTIONS[0])])
    for chunk in engine.generate(ids, GREEDY):
        found += chunk.token_ids
        if len(found) == 5:
            while engine._cache.pool.dtype != torch.int8:
                assert engine._ladder.give_up()
    assert agreement(found, expected) > 0.9
    assert told[-1] == "memory.int8_cache"


def test_real_shortage_is_answered() -> None:
    """Other tensors take what is free; what the ladder gives back must do for a long prompt."""
    told: list[str] = []
    engine = Engine.load(
        demo_directory(),
        EngineConfig(device="cuda"),
        on_adjustment=lambda code, _facts: told.append(code),
    )
    ids = [5 + place % 200 for place in range(engine.context_length - 64)]
    short = SamplingParams(temperature=0, max_new_tokens=8)
    list(engine.generate(ids[:64], short))
    torch.cuda.empty_cache()
    total = torch.cuda.mem_get_info()[1]
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 6 * 2**20) / total)
    tokens: list[int] = []
    with suppress(ResourceError):  # should it be more than there is to give
        tokens = [one for chunk in engine.generate(ids, short) for one in chunk.token_ids]
    torch.cuda.set_per_process_memory_fraction(1.0)
    assert len(tokens) in (0, 8)
    assert told[0] == "memory.smaller_chunk"
    assert len(reply(engine, QUESTIONS[0])) > 0


def test_a_thousand_turns_leave_no_memory_behind() -> None:
    engine = load(device="cuda")
    short = SamplingParams(temperature=0, max_new_tokens=2)
    for _ in range(20):
        reply(engine, QUESTIONS[1], short)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    for _ in range(1000):
        reply(engine, QUESTIONS[1], short)
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() - before < 2**20


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_a_store_on_the_gpu(tmp_path, precision: str) -> None:
    from xverse_runtime.store.convert import convert_checkpoint
    from xverse_runtime.store.precision import PRESETS

    output = tmp_path / "store"
    convert_checkpoint(demo_directory(), output, PRESETS[precision])
    gpu = Engine.load(output, EngineConfig(device="cuda"))
    cpu = Engine.load(output, EngineConfig(device="cpu"))
    assert gpu.precision == precision
    assert gpu.device.startswith("cuda")
    for question in QUESTIONS:
        assert agreement(reply(gpu, question), reply(cpu, question)) > 0.8
