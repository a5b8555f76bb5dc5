"""Several replies at once are the replies one by one."""

from __future__ import annotations

import weakref
from dataclasses import replace

import pytest
import torch

from tests.runtime.helpers import GOLDEN
from xverse_runtime.config import EngineConfig
from xverse_runtime.engine import Engine
from xverse_runtime.errors import GenerationError, UsageError
from xverse_runtime.types import CancelFlag, SamplingParams

PROMPTS = [[5, 9, 200], [7], [11, 12, 13, 14, 15, 16, 17], [5, 9, 201, 30], [300, 4]]
GREEDY = SamplingParams(temperature=0, max_new_tokens=6, repetition_penalty=1.1)


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine.load(GOLDEN / "moe-gqa", EngineConfig(device="cpu", context_length=64))


def one_by_one(engine: Engine, params: list[SamplingParams]) -> list[tuple[list[int], str]]:
    replies = []
    for ids, one in zip(PROMPTS, params, strict=True):
        chunks = list(engine.generate(ids, one))
        tokens = [token for chunk in chunks for token in chunk.token_ids]
        replies.append((tokens, str(chunks[-1].finish_reason)))
    return replies


def all_at_once(
    engine: Engine, params: list[SamplingParams], sequences: int
) -> list[tuple[list[int], str]]:
    tokens: list[list[int]] = [[] for _ in PROMPTS]
    reasons = [""] * len(PROMPTS)
    for number, chunk in engine.generate_batch(PROMPTS, params, sequences=sequences):
        assert reasons[number] == ""
        tokens[number] += chunk.token_ids
        if chunk.finish_reason is not None:
            reasons[number] = chunk.finish_reason
    return list(zip(tokens, reasons, strict=True))


@pytest.mark.parametrize("sequences", [1, 2, 3, 8])
def test_a_batch_gives_the_replies_of_single_generations(engine: Engine, sequences: int) -> None:
    lengths = [6, 1, 9, 3, 60]
    params = [replace(GREEDY, max_new_tokens=count) for count in lengths]
    assert all_at_once(engine, params, sequences) == one_by_one(engine, params)


def test_each_reply_has_its_own_settings(engine: Engine) -> None:
    params = [
        GREEDY,
        SamplingParams(temperature=0.9, top_k=40, seed=3, max_new_tokens=8),
        SamplingParams(temperature=0.9, top_k=40, seed=4, max_new_tokens=8),
        replace(GREEDY, repetition_penalty=1.3),
        SamplingParams(temperature=1.2, top_k=5, top_p=0.9, seed=3, max_new_tokens=5),
    ]
    found = all_at_once(engine, params, 3)
    assert found == one_by_one(engine, params)
    assert found[1] != found[2]


def test_usage_and_timings_come_with_the_last_chunk(engine: Engine) -> None:
    last = {}
    for number, chunk in engine.generate_batch(PROMPTS, GREEDY, sequences=2):
        last[number] = chunk
    for number, ids in enumerate(PROMPTS):
        assert last[number].usage.prompt_tokens == len(ids)
        assert last[number].usage.completion_tokens == 6
        assert last[number].timings.ttft_s > 0


def test_a_batch_is_broken_off_as_a_whole(engine: Engine) -> None:
    cancel = CancelFlag()
    reasons = {}
    for count, (number, chunk) in enumerate(
        engine.generate_batch(PROMPTS, replace(GREEDY, max_new_tokens=50), cancel, sequences=2)
    ):
        if count == 5:
            cancel.set()
        if chunk.finish_reason is not None:
            reasons[number] = chunk.finish_reason
    assert reasons == dict.fromkeys(range(len(PROMPTS)), "interrupted")
    assert all_at_once(engine, [GREEDY] * 5, 2) == one_by_one(engine, [GREEDY] * 5)


def test_a_prompt_of_a_batch_can_be_broken_off(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    cancel, forward = CancelFlag(), engine._decoder.forward

    def slow(tokens, cache, **options):  # type: ignore[no-untyped-def]
        if len(tokens) == len(PROMPTS[2]):
            cancel.set()
        return forward(tokens, cache, **options)

    monkeypatch.setattr(engine._decoder, "forward", slow)
    reasons: dict[int, list[str]] = {}
    for number, chunk in engine.generate_batch(PROMPTS, GREEDY, cancel, sequences=8):
        reasons.setdefault(number, []).append(str(chunk.finish_reason))
    assert [reasons[number][-1] for number in range(5)] == ["interrupted"] * 5
    assert reasons[2] == ["interrupted"]


def test_memory_for_fewer_sequences(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    from xverse_runtime import batch as module

    real = module.KVPool

    def pool(config, capacity, dtype, device, sequences=1):  # type: ignore[no-untyped-def]
        if sequences > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(config, capacity, dtype, device, sequences)

    told = []
    monkeypatch.setattr(module, "KVPool", pool)
    monkeypatch.setattr(engine, "_on_adjustment", lambda code, facts: told.append((code, facts)))
    expected = one_by_one(engine, [GREEDY] * 5)
    assert all_at_once(engine, [GREEDY] * 5, 5) == expected
    assert told == [("memory.fewer_sequences", {"sequences": 2})]


def test_caches_that_left_no_room_for_the_steps_are_gone_before_fewer_are_made(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    from xverse_runtime import batch as module

    loop, kept, alive = module.decode_loop, [], []

    def too_much_for_three(decoder, pool, **how):  # type: ignore[no-untyped-def]
        kept.extend(weakref.ref(rows) for rows in pool.keys if pool.sequences > 2)
        if pool.sequences > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return loop(decoder, pool, **how)

    real = module.KVPool

    def pool(config, capacity, dtype, device, sequences=1):  # type: ignore[no-untyped-def]
        alive.append(sum(rows() is not None for rows in kept))
        return real(config, capacity, dtype, device, sequences)

    monkeypatch.setattr(module, "decode_loop", too_much_for_three)
    monkeypatch.setattr(module, "KVPool", pool)
    expected = one_by_one(engine, [GREEDY] * 5)
    assert all_at_once(engine, [GREEDY] * 5, 5) == expected
    assert kept
    assert alive == [0, 0]


def test_what_a_batch_cannot_do(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError) as caught:
        list(engine.generate_batch([[5]], SamplingParams(logprobs=1)))
    assert caught.value.code == "batch.no_logprobs"
    with pytest.raises(UsageError, match=r"batch\.sequences"):
        list(engine.generate_batch([[5]], GREEDY, sequences=0))
    with pytest.raises(UsageError, match=r"prompt\.empty"):
        list(engine.generate_batch([[5], []], GREEDY))
    assert list(engine.generate_batch([], GREEDY)) == []
    with pytest.raises(ValueError, match="zip"):
        list(engine.generate_batch([[5], [6]], [GREEDY]))


def test_logits_that_are_not_finite(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    step = engine._decoder.step
    monkeypatch.setattr(engine._decoder, "step", lambda *args: step(*args) * float("nan"))
    with pytest.raises(GenerationError) as caught:
        list(engine.generate_batch(PROMPTS, GREEDY, sequences=2))
    assert caught.value.code == "sampling.non_finite"
