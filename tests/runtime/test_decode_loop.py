"""Decoding one step ahead, on the CPU: what it gives, what it leaves, and short memory."""

from __future__ import annotations

import gc
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.runtime.helpers import GOLDEN, expected_cases
from xverse_runtime.config import EngineConfig
from xverse_runtime.decode_loop import BUCKETS, DecodeLoop, TokenMailbox
from xverse_runtime.decoding import TorchSampler
from xverse_runtime.engine import Engine
from xverse_runtime.errors import GenerationError, ResourceError
from xverse_runtime.generation import SMALLEST_CHUNK
from xverse_runtime.types import CancelFlag, SamplingParams

CPU = torch.device("cpu")
GREEDY = SamplingParams(temperature=0, max_new_tokens=12, repetition_penalty=1.1)


def load(ahead: bool) -> Engine:
    engine = Engine.load(GOLDEN / "moe-gqa", EngineConfig(device="cpu"))
    if ahead:
        pool = engine._cache.pool
        engine._loop = DecodeLoop(engine._decoder, pool, TorchSampler(1, CPU))
    return engine


def reply(engine: Engine, ids: list[int], params: SamplingParams = GREEDY) -> list[int]:
    return [token for chunk in engine.generate(ids, params) for token in chunk.token_ids]


@pytest.fixture(scope="module")
def prompt() -> list[int]:
    ids: list[int] = expected_cases("moe-gqa")[0]["prompt_token_ids"]
    return ids


def test_a_step_ahead_gives_the_same_tokens(prompt: list[int]) -> None:
    ahead, plain = load(ahead=True), load(ahead=False)
    sampled = SamplingParams(temperature=0.8, top_k=20, max_new_tokens=12, seed=7)
    for params in (GREEDY, sampled):
        assert reply(ahead, prompt, params) == reply(plain, prompt, params)
        assert ahead._cache._tokens == plain._cache._tokens
    longer = [*prompt, *reply(ahead, prompt), 9]
    chunks = list(ahead.generate(longer, GREEDY))
    assert chunks[-1].usage.cached_tokens == len(prompt) + 11
    assert [t for c in chunks for t in c.token_ids] == reply(plain, longer)


def test_a_stopped_reader_leaves_a_cache_that_is_right(prompt: list[int]) -> None:
    ahead, plain = load(ahead=True), load(ahead=False)
    expected = reply(plain, prompt)
    for count in (1, 2, 7):
        cancel, seen = CancelFlag(), []
        for chunk in ahead.generate(prompt, GREEDY, cancel):
            seen += chunk.token_ids
            if len(seen) == count:
                cancel.set()
        assert seen == expected[:count]
        assert ahead._cache._tokens == [*prompt, *expected[: count - 1]]
        assert reply(ahead, [*prompt, *expected[:count]]) == reply(
            plain, [*prompt, *expected[:count]]
        )


@pytest.mark.parametrize(("stop", "read"), [("objects", 1), ("处", 3), ("outw", 5)])
def test_a_stop_string_leaves_a_cache_that_is_right(
    stop: str, read: int, prompt: list[int]
) -> None:
    """The step that is under way when it is found is forgotten."""
    ahead, plain = load(ahead=True), load(ahead=False)
    whole = list(plain.generate(prompt, GREEDY))
    expected = [token for chunk in whole for token in chunk.token_ids]
    text = "".join(chunk.text for chunk in whole)
    chunks = list(ahead.generate(prompt, replace(GREEDY, stop=(stop,))))
    assert chunks[-1].finish_reason == "stop"
    assert "".join(chunk.text for chunk in chunks) == text[: text.index(stop)]
    assert [t for chunk in chunks for t in chunk.token_ids] == expected[:read]
    assert ahead._loop is not None
    assert ahead._loop.reached == len(prompt) + read  # it was under way
    assert ahead._cache._tokens == [*prompt, *expected[: read - 1]]
    longer = [*prompt, *expected[:read], 9]
    *begun, last = ahead.generate(longer, GREEDY)
    assert last.usage is not None
    assert last.usage.cached_tokens == len(prompt) + read - 1
    assert [t for chunk in (*begun, last) for t in chunk.token_ids] == reply(plain, longer)


def live_tensors() -> tuple[int, int]:
    """How many there are, and their bytes."""
    gc.collect()
    # by type: for some objects isinstance would import what they stand for
    found = [one for one in gc.get_objects() if type(one) in (Tensor, torch.nn.Parameter)]
    return len(found), sum(one.nbytes for one in found)


@pytest.mark.parametrize("turns", [40, pytest.param(1000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("ahead", [True, False])
def test_turns_leave_no_memory_behind(ahead: bool, turns: int, prompt: list[int]) -> None:
    """Replies that end by themselves, by a stop string, by Ctrl-C and by a reader who goes."""
    engine = load(ahead)
    short = replace(GREEDY, max_new_tokens=2)
    stopped = replace(GREEDY, stop=("objects",))

    def turn(number: int) -> None:
        ids = [*prompt[:4], 5 + number % 7]
        if number % 4 == 0:
            reply(engine, ids, short)
        elif number % 4 == 1:
            reply(engine, prompt[:8], stopped)
        elif number % 4 == 2:
            cancel = CancelFlag()
            for _ in engine.generate(ids, short, cancel):
                cancel.set()
        else:
            next(iter(engine.generate(ids, short)))

    for number in range(28):
        turn(number)
    before = live_tensors()
    for number in range(turns):
        turn(number)
    assert live_tensors() == before


def test_no_step_is_computed_beyond_the_limit(
    prompt: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = load(ahead=True)
    assert engine._loop is not None
    longest: list[int] = []
    step = engine._loop.step
    monkeypatch.setattr(engine._loop, "step", lambda at: (longest.append(at), step(at))[1])
    reply(engine, prompt)
    assert longest == list(range(len(prompt), len(prompt) + 11))


def test_the_context_is_used_to_its_last_place(prompt: list[int]) -> None:
    engine = Engine.load(
        GOLDEN / "moe-gqa", EngineConfig(device="cpu", context_length=len(prompt) + 4)
    )
    engine._loop = DecodeLoop(engine._decoder, engine._cache.pool, TorchSampler(1, CPU))
    *_, last = engine.generate(prompt, GREEDY)
    assert last.truncated
    assert last.usage.completion_tokens == 4


def test_logits_that_are_not_finite(prompt: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    engine = load(ahead=True)
    step = engine._decoder.step
    monkeypatch.setattr(engine._decoder, "step", lambda *args: step(*args) * float("nan"))
    chunks = engine.generate(prompt, GREEDY)
    assert len(next(chunks).token_ids) == 1
    with pytest.raises(GenerationError) as caught:
        next(chunks)
    assert caught.value.params == {"step": 1}


def test_every_length_has_a_bucket(prompt: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    engine = load(ahead=True)
    loop = engine._loop
    assert loop is not None
    used: list[int] = []
    monkeypatch.setattr(loop, "_run", used.append)
    for longest in (0, BUCKETS[0], BUCKETS[0] + 1, engine.context_length - 1):
        loop.step(longest)
    capacity = engine.context_length
    assert used == [min(one, capacity) for one in (BUCKETS[0], BUCKETS[0], BUCKETS[1], capacity)]


def test_the_mailbox_keeps_the_order() -> None:
    mailbox = TokenMailbox(2, CPU, depth=2)
    tokens = torch.tensor([1, 2])
    mailbox.post(tokens)
    tokens += 10
    mailbox.post(tokens)
    assert mailbox.take() == [1, 2]
    mailbox.post(torch.tensor([7, 8]))
    assert mailbox.take() == [11, 12]
    assert mailbox.take() == [7, 8]


class FakeEvent:
    """Of a device whose copies are over at once."""

    def record(self) -> None: ...

    def synchronize(self) -> None: ...


def test_a_mailbox_where_no_memory_can_be_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(_self: Tensor) -> Tensor:
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(Tensor, "pin_memory", refuses)
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    mailbox = TokenMailbox(2, torch.device("cuda", 0))
    for tokens in ([1, 2], [3, 4]):
        mailbox.post(torch.tensor(tokens))
    assert [mailbox.take(), mailbox.take()] == [[1, 2], [3, 4]]


def out_of_memory_above(engine: Engine, limit: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let forward passes of more than ``limit`` tokens run out of memory; the sizes tried."""
    forward, tried = engine._decoder.forward, []

    def limited(tokens, cache, **options):  # type: ignore[no-untyped-def]
        tried.append(len(tokens))
        if len(tokens) > limit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return forward(tokens, cache, **options)

    monkeypatch.setattr(engine._decoder, "forward", limited)
    return tried


def test_a_prompt_that_does_not_fit_is_taken_in_smaller_pieces(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ids = [5 + place % 200 for place in range(400)]
    engine, plain = load(ahead=True), load(ahead=False)
    told: list[tuple[int]] = []
    monkeypatch.setattr(engine._prefill, "_on_smaller", lambda size: told.append(size))
    monkeypatch.setattr(engine._prefill, "chunk", 400)
    tried = out_of_memory_above(engine, 100, monkeypatch)
    assert reply(engine, ids) == reply(plain, ids)
    assert told == [200, 100]
    assert tried == [400, 200, 100, 100, 100, 100]
    reply(engine, [9, *ids])
    assert max(tried[6:]) == 100  # the smaller size stays


def test_memory_that_does_not_do_even_for_a_small_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = load(ahead=True)
    out_of_memory_above(engine, SMALLEST_CHUNK - 1, monkeypatch)
    with pytest.raises(ResourceError) as caught:
        reply(engine, [5] * 200)
    assert caught.value.code == "memory.exhausted"
    monkeypatch.undo()
    assert len(reply(engine, [5] * 200)) == 12  # the session lives on
