"""What is given up when a GPU has no memory left: in which order, said aloud, with which text."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from random import Random
from typing import Any

import pytest
import torch

from tests.runtime.helpers import GOLDEN, expected_cases
from xverse_kernels.kv_rows import Int8Rows, to_int8, write_rows
from xverse_runtime import generation, kv_cache, memory_ladder
from xverse_runtime.config import EngineConfig
from xverse_runtime.decode_loop import DecodeLoop
from xverse_runtime.decoding import TorchSampler
from xverse_runtime.engine import Engine
from xverse_runtime.errors import ResourceError
from xverse_runtime.generation import SMALLEST_CHUNK
from xverse_runtime.kv_cache import KVCache, KVPool
from xverse_runtime.memory_ladder import FAULTS, MemoryLadder
from xverse_runtime.types import SamplingParams

CPU = torch.device("cpu")
GREEDY = SamplingParams(temperature=0, max_new_tokens=20, repetition_penalty=1.0)
SAMPLED = SamplingParams(temperature=0.8, top_k=20, max_new_tokens=20, seed=7)
Told = list[tuple[str, Any]]
PROMPT: list[int] = expected_cases("moe-gqa")[0]["prompt_token_ids"]


def telling(seed: int) -> list[int]:
    """A prompt whose reply tells when keys and values were rounded."""
    rng = Random(seed)
    return [rng.randrange(5, 300) for _ in range(40)]


TELLING = telling(11)


@pytest.fixture(autouse=True)
def short_contexts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test model's context is shorter than the smallest that a GPU is given."""
    monkeypatch.setattr(memory_ladder, "SMALLEST_CONTEXT", 64)
    monkeypatch.setattr(memory_ladder, "CONTEXT_STEP", 16)


def load(ahead: bool = True, **wishes: Any) -> tuple[Engine, Told]:
    told: Told = []
    engine = Engine.load(
        GOLDEN / "moe-gqa",
        EngineConfig(device="cpu", lookup=False, **wishes),
        on_adjustment=lambda code, facts: told.append((code, dict(facts))),
    )
    if ahead:
        engine._loop = DecodeLoop(engine._decoder, engine._cache.pool, TorchSampler(1, CPU))
        engine._ladder.hold_steps(engine._loop)
    return engine, told


def reply(engine: Engine, ids: list[int], params: SamplingParams = GREEDY) -> list[int]:
    return [token for chunk in engine.generate(ids, params) for token in chunk.token_ids]


class Memory:
    """Lets passes run out of memory while what they need does not fit beside the cache."""

    def __init__(self, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
        self.most = 2**40  # bytes of the cache that leave room for a pass
        self.shortages = 0
        pool = engine._cache.pool
        decoder = engine._decoder

        def limited(work: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
            def run(*args: Any, **options: Any) -> torch.Tensor:
                if pool.nbytes > self.most:
                    self.shortages += 1
                    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
                return work(*args, **options)

            return run

        monkeypatch.setattr(decoder, "forward", limited(decoder.forward))
        monkeypatch.setattr(decoder, "step", limited(decoder.step))


def after(engine: Engine, ids: list[int], tokens: int, memory: Memory, most: int) -> list[int]:
    """A reply during which the memory gets short."""
    found: list[int] = []
    for chunk in engine.generate(ids, GREEDY):
        found += chunk.token_ids
        if len(found) == tokens:
            memory.most = most
    return found


@pytest.mark.parametrize("ahead", [True, False])
@pytest.mark.parametrize("at", [0, 1, 2, 9])
def test_a_smaller_context_changes_nothing(
    at: int, ahead: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, _ = load(ahead)
    engine, told = load(ahead)
    whole = engine.context_length
    memory = Memory(engine, monkeypatch)
    third = engine._cache.pool.nbytes // 3
    memory.most = third if at == 0 else memory.most
    assert after(engine, PROMPT, at, memory, third) == reply(plain, PROMPT)
    smaller = engine.context_length
    assert [code for code, _ in told] == ["memory.smaller_context"] * 2
    assert told[0][1]["wished"] == whole
    assert told[1][1] == {"wished": told[0][1]["context_length"], "context_length": smaller}
    assert smaller >= len(PROMPT) + GREEDY.max_new_tokens
    assert engine._cache.pool.dtype == torch.float32
    longer = [*PROMPT, *reply(engine, PROMPT, SAMPLED), 9]
    assert longer[len(PROMPT) : -1] == reply(plain, PROMPT, SAMPLED)
    assert reply(engine, longer) == reply(plain, longer)
    assert engine.statistics().memory[-1] == ("cache", engine._cache.pool.nbytes)


def rounded_by_hand(ids: list[int], tokens: int) -> list[int]:
    """The reply where after so many of its tokens all keys and values until then are rounded."""
    engine, _ = load(ahead=False)
    decoder, capacity = engine._decoder, engine.context_length
    plain = KVCache(KVPool(decoder.config, capacity, torch.float32, CPU))
    pool = KVPool(decoder.config, capacity, torch.int8, CPU)
    found = [int(decoder.forward(ids, plain).argmax())]
    while len(found) < tokens:
        found.append(int(decoder.forward([found[-1]], plain).argmax()))
    rows = (slice(None), slice(None), slice(plain.length))
    for target, source in zip(
        pool.keys + pool.values, plain.pool.keys + plain.pool.values, strict=True
    ):
        assert isinstance(source, torch.Tensor)
        write_rows(target, rows, source[rows])
    cache = KVCache(pool)
    cache.commit([*ids, *found[:-1]])
    while len(found) < GREEDY.max_new_tokens:
        found.append(int(decoder.forward([found[-1]], cache).argmax()))
    return found


@pytest.mark.parametrize("ahead", [True, False])
@pytest.mark.parametrize("at", [1, 2, 3, 9])
@pytest.mark.parametrize("seed", [2, 11])
def test_a_cache_that_is_rounded_in_the_middle(
    seed: int, at: int, ahead: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The conversation is not lost: the text goes on from the rounded keys and values."""
    engine, told = load(ahead, context_length=256)
    ids = telling(seed)
    memory = Memory(engine, monkeypatch)
    found = after(engine, ids, at, memory, engine._cache.pool.nbytes // 2)
    # a loop is a step ahead of its reader, so the shortage meets it one token later
    assert found == rounded_by_hand(ids, at + ahead)
    assert told == [("memory.int8_cache", {})]  # the context was asked for
    assert memory.shortages == 1
    assert engine._cache.pool.dtype == torch.int8
    assert engine.context_length == 256
    chunks = list(engine.generate([*ids, *found, 9], GREEDY))
    assert chunks[-1].usage.cached_tokens == len(ids) + len(found) - 1


def test_the_prompts_tell_when_they_are_rounded() -> None:
    engine, _ = load()
    replies = [rounded_by_hand(TELLING, tokens) for tokens in (2, 3, 10)]
    replies.append(reply(engine, TELLING))
    assert all(one != other for one, other in combinations(replies, 2))


def test_a_prompt_begins_anew_with_the_other_format(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, told = load(context_length=256)
    memory = Memory(engine, monkeypatch)
    memory.most = engine._cache.pool.nbytes // 2
    expected = reply(load(context_length=256, kv="int8")[0], PROMPT)
    assert reply(engine, PROMPT) == expected
    assert told == [("memory.int8_cache", {})]


def test_the_order_of_the_rungs(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, told = load()
    memory = Memory(engine, monkeypatch)
    ids = [5 + place % 200 for place in range(2 * SMALLEST_CHUNK + 10)]
    capacity = -(-(len(ids) + GREEDY.max_new_tokens) // 16) * 16
    memory.most = KVPool.bytes_needed(engine._decoder.config, capacity, torch.int8)
    assert len(reply(engine, ids)) == GREEDY.max_new_tokens
    codes = list(dict.fromkeys(code for code, _ in told))
    assert codes == ["memory.smaller_chunk", "memory.smaller_context", "memory.int8_cache"]
    assert [code for code, _ in told] == sorted((code for code, _ in told), key=codes.index)
    assert engine.context_length == capacity
    assert engine._prefill.chunk == SMALLEST_CHUNK


@pytest.mark.parametrize(
    "wishes", [{"kv": "bf16"}, {"precision": "fp32"}, {"kv": "int8"}], ids=lambda one: str(one)
)
def test_what_was_asked_for_stays(wishes: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """And the session lives on when there is memory again."""
    engine, told = load(context_length=256, **wishes)
    expected = reply(engine, PROMPT)
    dtype = engine._cache.pool.dtype
    engine._cache.truncate(0)
    memory = Memory(engine, monkeypatch)
    memory.most = 1
    with pytest.raises(ResourceError) as caught:
        reply(engine, PROMPT)
    assert caught.value.code == "memory.exhausted"
    assert caught.value.params["needed_bytes"] == 2 * 2**30
    assert told == []
    assert (engine._cache.pool.dtype, engine.context_length) == (dtype, 256)
    memory.most = 2**40
    assert reply(engine, PROMPT) == expected


def test_memory_that_is_gone_before_it_is_taken_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another program takes it in between; what was kept waits on the host."""
    engine, told = load(context_length=256)
    expected = rounded_by_hand(TELLING, 6)
    memory = Memory(engine, monkeypatch)
    empty_rows = kv_cache.empty_rows
    gone = True

    def crowded(shape: Any, dtype: torch.dtype, device: torch.device) -> Any:
        if gone and len(shape) == 4:  # the copies on the host have one dimension less
            raise torch.OutOfMemoryError("CUDA out of memory")
        return empty_rows(shape, dtype, device)

    found: list[int] = []
    copies = kv_cache._on_host

    def on_host(rows: Any, count: int) -> Any:
        with monkeypatch.context() as patch:
            patch.setattr(kv_cache, "empty_rows", empty_rows)
            return copies(rows, count)

    monkeypatch.setattr(kv_cache, "_on_host", on_host)
    monkeypatch.setattr(kv_cache, "empty_rows", crowded)
    chunks = engine.generate(TELLING, GREEDY)
    for _ in range(5):
        found += next(chunks).token_ids
    memory.most = engine._cache.pool.nbytes // 2
    with pytest.raises(ResourceError):
        found += [token for chunk in chunks for token in chunk.token_ids]
    assert found == expected[: len(found)]
    assert not engine._cache.pool.is_here
    with pytest.raises(ResourceError):
        reply(engine, [*TELLING, *found])
    assert told == []
    gone = False
    rest = reply(engine, [*TELLING, *found])
    assert told == [("memory.int8_cache", {})]
    assert rest[: len(expected) - len(found)] == expected[len(found) :]


def test_a_host_without_room_for_a_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, told = load()

    def full(*_: Any) -> Any:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(kv_cache, "_on_host", full)
    memory = Memory(engine, monkeypatch)
    memory.most = 1
    with pytest.raises(ResourceError):
        reply(engine, PROMPT)
    assert told == []
    memory.most = 2**40
    assert reply(engine, PROMPT) == reply(load()[0], PROMPT)


@pytest.mark.skipif(not FAULTS, reason="this torch does not tell them apart")
def test_a_gpu_that_fails_while_its_cache_is_copied_is_an_error_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No smaller cache helps there, and the next rung would only hide what it was."""
    engine, told = load()

    def fails(*_: Any) -> Any:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(kv_cache, "_on_host", fails)
    Memory(engine, monkeypatch).most = 1
    with pytest.raises(torch.AcceleratorError, match="illegal memory access"):
        reply(engine, PROMPT)
    assert told == []


def test_conversations_kept_on_the_host_are_rounded_when_they_come_back() -> None:
    engine, _ = load()
    engine.keep_conversations()
    first = [5 + place % 90 for place in range(60)]
    said = reply(engine, first)
    reply(engine, [9, *first])
    assert engine._kept is not None
    assert engine._kept.nbytes > 0
    assert engine._ladder._int8_cache()
    chunks = list(engine.generate([*first, *said, 7], GREEDY))
    assert chunks[-1].usage.cached_tokens == len(first) + len(said) - 1
    assert engine._cache.pool.dtype == torch.int8


@pytest.mark.parametrize("sequences", [1, 3])
def test_a_pool_that_leaves_comes_back_as_it_was(sequences: int) -> None:
    config = load(ahead=False)[0]._decoder.config
    pool = KVPool(config, 32, torch.float32, CPU, sequences)
    before = [one.normal_().clone() for one in pool.keys + pool.values]  # type: ignore[union-attr]
    pool.leave(20, capacity=24)
    assert not pool.is_here
    pool.come_back()
    for rows, old in zip(pool.keys + pool.values, before, strict=True):
        assert rows.shape == (sequences, config.num_kv_heads, 24, config.head_dim)
        assert torch.equal(rows[:, :, :20], old[:, :, :20])  # type: ignore[index]
    pool.leave(20, dtype=torch.int8)
    pool.come_back()
    for rows, old in zip(pool.keys + pool.values, before, strict=True):
        assert isinstance(rows, Int8Rows)
        expected = to_int8(old[:, :, :20])
        assert torch.equal(rows.integers[:, :, :20], expected.integers)
        assert torch.equal(rows.scales[:, :, :20], expected.scales)
    pool.leave(7)
    pool.come_back()
    for rows, old in zip(pool.keys + pool.values, before, strict=True):
        assert isinstance(rows, Int8Rows)
        assert torch.equal(rows.integers[:, :, :7], to_int8(old[:, :, :7]).integers)


def test_captured_steps_hear_that_something_moved() -> None:
    class Captured:
        reached = 0
        resets = 0

        def reset(self) -> None:
            self.resets += 1

    released: list[int] = []
    ladder = MemoryLadder(release=lambda: released.append(1))
    config = load(ahead=False)[0]._decoder.config
    steps = Captured()
    ladder.hold(KVPool(config, 160, torch.float32, CPU), lambda: 3)
    ladder.hold_steps(steps)
    assert [ladder.give_up() for _ in range(5)] == [True, True, True, False, False]
    assert (steps.resets, len(released)) == (3, 3)


def test_a_batch_goes_on_in_int8(monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = [PROMPT, PROMPT[:5], [7, 8, 9]]
    engine, told = load(context_length=256)
    memory = Memory(engine, monkeypatch)
    found: list[list[int]] = [[] for _ in prompts]
    for count, (number, chunk) in enumerate(engine.generate_batch(prompts, GREEDY, sequences=2)):
        found[number] += chunk.token_ids
        if count == 10:
            memory.most = engine._cache.pool.nbytes // 2
    assert told == [("memory.int8_cache", {})]
    assert [len(one) for one in found] == [GREEDY.max_new_tokens] * 3
    plain, _ = load(context_length=256)
    for ids, one in zip(prompts[:2], found[:2], strict=True):
        assert one[:4] == reply(plain, ids)[:4]  # what was there before
    assert found[2] == reply(load(context_length=256, kv="int8")[0], prompts[2])  # and after


@pytest.mark.parametrize("wishes", [{}, {"context_length": 256}, {"kv": "bf16"}])
def test_a_cache_that_does_not_fit_while_loading(
    wishes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another program takes the memory between the look at it and the cache."""
    plain, _ = load(ahead=False, **wishes)
    capacity, config = plain.context_length, plain._decoder.config
    most = KVPool.bytes_needed(config, capacity, torch.float32) // (4 if not wishes else 2)
    come_back = KVPool.come_back

    def crowded(pool: KVPool) -> None:
        if pool.nbytes > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        come_back(pool)

    monkeypatch.setattr(KVPool, "come_back", crowded)
    if "kv" in wishes:
        monkeypatch.setattr(memory_ladder, "SMALLEST_CONTEXT", 10**6)
        most = 1
        with pytest.raises(ResourceError) as caught:
            load(**wishes)
        assert caught.value.code == "memory.exhausted"
        return
    engine, told = load(**wishes)
    codes = [code for code, _ in told]
    if wishes:
        assert codes == ["memory.int8_cache"]
        assert reply(engine, PROMPT) == reply(load(kv="int8", **wishes)[0], PROMPT)
    else:
        assert codes == ["memory.smaller_context"] * 2
        assert told[0][1]["wished"] == capacity
        assert reply(engine, PROMPT) == reply(plain, PROMPT)
    note = next(one for one in engine.notes if one.startswith("context: "))
    assert f"context: {engine.context_length} tokens" in note


@pytest.mark.parametrize("ahead", [True, False])
def test_choosing_the_first_token_is_begun_again(
    ahead: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, told = load(ahead)
    starts = 0
    start = generation.Generation._start

    def short(self: generation.Generation, logits: torch.Tensor) -> Any:
        nonlocal starts
        starts += 1
        if starts == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return start(self, logits)

    monkeypatch.setattr(generation.Generation, "_start", short)
    assert reply(engine, PROMPT, SAMPLED) == reply(load(ahead)[0], PROMPT, SAMPLED)
    assert [code for code, _ in told] == ["memory.smaller_context"]
