"""Prompt lookup in the engine: whatever is proposed, nobody can tell it from plain decoding."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.runtime.helpers import GOLDEN, MOE_CHECKPOINTS, expected_cases
from tests.runtime.row_by_row import load_exact
from xverse_runtime.config import EngineConfig
from xverse_runtime.demo import demo_directory
from xverse_runtime.engine import Engine
from xverse_runtime.errors import GenerationError
from xverse_runtime.lookup import Lookup
from xverse_runtime.lookup_policy import LookupPolicy
from xverse_runtime.types import CancelFlag, GenerationChunk, Message, SamplingParams, Timings

GREEDY = SamplingParams(temperature=0, max_new_tokens=24, seed=0)
SETTINGS = {
    "greedy": GREEDY,
    "penalty": replace(GREEDY, repetition_penalty=1.3),
    "drawn": SamplingParams(temperature=0.3, max_new_tokens=24, seed=1),
    "hot": SamplingParams(temperature=1.5, max_new_tokens=24, seed=2),
    "filtered": SamplingParams(0.7, 20, 0.9, 0.01, 1.1, 24, seed=3),
    "logprobs": replace(GREEDY, logprobs=3),
    "drawn logprobs": SamplingParams(temperature=0.8, max_new_tokens=24, seed=4, logprobs=0),
    "one": replace(GREEDY, max_new_tokens=1),
    "two": replace(GREEDY, max_new_tokens=2),
    "seven": replace(GREEDY, max_new_tokens=7),
}


class Told(Lookup):
    """Knows the reply, and spoils some of its proposals: every pattern of hits and misses."""

    def __init__(self, prompt_ids: list[int], limit: int, reply: list[int], seed: int) -> None:
        super().__init__(prompt_ids, limit)
        self._reply = reply
        self._limit = limit
        self._rng = random.Random(seed)

    def propose(self) -> list[int]:
        done = self._limit - self._left
        right = self._reply[done : done + self._rng.randrange(7)][: self._left - 1]
        spoilt = [5 if self._rng.random() < 0.2 else token for token in right]
        self._ahead.clear()
        self._ahead.extend(spoilt)
        return spoilt


def loaded(path: Path, **config: int) -> tuple[Engine, Engine]:
    return load_exact(path, **config), load_exact(path, lookup=False, **config)


@pytest.fixture(scope="module", params=[*MOE_CHECKPOINTS, "dense-linear"])
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Engine, Engine]:
    """The same model, with lookup and without."""
    path = GOLDEN / request.param
    if not (path / "tokenizer.json").exists():
        path = shutil.copytree(path, tmp_path_factory.mktemp("model") / request.param)
        shutil.copy(GOLDEN / "moe-safetensors" / "tokenizer.json", path)
    return loaded(path)


@pytest.fixture(scope="module")
def one_pair() -> tuple[Engine, Engine]:
    return loaded(GOLDEN / "moe-safetensors")


@pytest.fixture(scope="module")
def demo() -> Engine:
    return load_exact(demo_directory())


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Check every proposal there is."""
    monkeypatch.setattr(LookupPolicy, "count", lambda _self, _matched, most: min(5, most))


def told(monkeypatch: pytest.MonkeyPatch, reply: list[int], seed: int = 0) -> None:
    def make(prompt_ids: list[int], limit: int) -> Lookup:
        return Told(prompt_ids, limit, reply, seed)

    monkeypatch.setattr("xverse_runtime.generation.Lookup", make)


def prompt(repeated: int = 2) -> list[int]:
    ids: list[int] = expected_cases("moe-safetensors")[0]["prompt_token_ids"]
    return [token % 120 for token in ids] * repeated  # in the vocabulary of all golden models


def seen(chunks: Iterable[GenerationChunk]) -> list[GenerationChunk]:
    """All that a reader sees but the time that it took."""
    return [replace(chunk, timings=Timings(), passes=()) for chunk in chunks]


def ids_of(chunks: Iterable[GenerationChunk]) -> list[int]:
    return [token for chunk in chunks for token in chunk.token_ids]


def both(pair: tuple[Engine, Engine], ids: list[int], params: SamplingParams) -> list[int]:
    """The reply, which must be the same from both engines, as what they keep of it."""
    ahead, plain = (seen(engine.generate(ids, params)) for engine in pair)
    assert ahead == plain
    assert pair[0]._cache._tokens == pair[1]._cache._tokens
    return ids_of(ahead)


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("name", SETTINGS)
def test_proposals_change_nothing(pair: tuple[Engine, Engine], name: str) -> None:
    both(pair, prompt(), SETTINGS[name])


@pytest.mark.parametrize("name", SETTINGS)
def test_no_pattern_of_hits_changes_anything(
    pair: tuple[Engine, Engine], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    params, (ahead, plain) = SETTINGS[name], pair
    reply = both(pair, prompt(1), params)
    expected = seen(plain.generate(prompt(1), params))
    for seed in range(3):
        told(monkeypatch, reply, seed)
        assert seen(ahead.generate(prompt(1), params)) == expected
        assert ahead._cache._tokens == plain._cache._tokens
    *_, last = ahead.generate(prompt(1), params)
    assert sum(1 + one.accepted for one in last.passes) >= len(reply) - 1
    if len(reply) > 10:
        assert any(one.accepted > 1 for one in last.passes)
        assert any(one.accepted < one.proposed for one in last.passes)


def test_stop_strings(one_pair: tuple[Engine, Engine], monkeypatch: pytest.MonkeyPatch) -> None:
    reply = both(one_pair, prompt(), GREEDY)
    text = one_pair[1].tokenizer.decode(reply)
    told(monkeypatch, reply)
    for start in range(2, len(text) - 3, 5):
        params = replace(GREEDY, stop=(text[start : start + 3],))
        stopped = both(one_pair, prompt(), params)
        both(one_pair, [*prompt(), *stopped, 9, 8], params)


def test_an_end_token_among_the_accepted(
    one_pair: tuple[Engine, Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    reply = both(one_pair, prompt(), GREEDY)
    told(monkeypatch, reply)
    for engine in one_pair:
        ends = replace(engine._text, end_token_ids=(reply[9],))
        monkeypatch.setattr(engine, "_text", ends)
    assert both(one_pair, prompt(), GREEDY) == reply[: reply.index(reply[9]) + 1]
    ignoring = [seen(e.generate(prompt(), GREEDY, ignore_end=True)) for e in one_pair]
    assert ignoring[0] == ignoring[1]
    assert ids_of(ignoring[0]) == reply


@pytest.mark.parametrize("room", [1, 2, 3, 9])
def test_the_context_is_used_to_its_last_place(room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = loaded(GOLDEN / "moe-safetensors", context_length=len(prompt()) + room)
    monkeypatch.setattr(LookupPolicy, "count", lambda _self, _matched, most: most)
    assert len(both(pair, prompt(), GREEDY)) == room
    *_, last = pair[0].generate(prompt(), GREEDY)
    assert last.truncated


@pytest.mark.parametrize("count", range(1, 9))
def test_a_reader_that_stops(
    one_pair: tuple[Engine, Engine], count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    reply = both(one_pair, prompt(), GREEDY)
    told(monkeypatch, reply, count)
    for close in (False, True):
        for engine in one_pair:
            cancel = CancelFlag()
            stream = engine.generate(prompt(), GREEDY, cancel)
            got = ids_of(next(stream) for _ in range(count))
            if close:
                stream.close()
            else:
                cancel.set()
                assert [chunk.finish_reason for chunk in stream] == ["interrupted"]
            assert got == reply[:count]
            assert engine._cache._tokens == [*prompt(), *reply[: count - 1]]
        told(monkeypatch, reply[count:])
        assert both(one_pair, [*prompt(), *reply[:count]], GREEDY)[: 24 - count] == reply[count:]
        told(monkeypatch, reply, count)


class FlagAfter(CancelFlag):
    """Set once it has been looked at so many times: somewhere inside a pass."""

    def __init__(self, looks: int) -> None:
        super().__init__()
        self._looks = looks

    def is_set(self) -> bool:
        self._looks -= 1
        return self._looks < 0


def test_an_interrupt_in_the_middle_of_a_pass(
    one_pair: tuple[Engine, Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    ahead, plain = one_pair
    reply = ids_of(plain.generate(prompt(1), GREEDY))
    told(monkeypatch, reply)
    lengths = set()
    for looks in range(5, 400, 13):
        *chunks, last = ahead.generate(prompt(1), GREEDY, FlagAfter(looks))
        got = ids_of(chunks)
        lengths.add(len(got))
        assert last.finish_reason == "interrupted"
        assert got == reply[: len(got)]
        if got:
            assert ahead._cache._tokens == [*prompt(1), *got[:-1]]
        assert ids_of(ahead.generate(prompt(1), GREEDY)) == reply
    assert len(lengths) > 5


def test_logits_that_are_not_finite(
    one_pair: tuple[Engine, Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    reply = both(one_pair, prompt(), GREEDY)
    told(monkeypatch, reply)
    bad = len(prompt()) + 6
    for engine in one_pair:
        forward = engine._decoder.forward

        def spoilt(tokens: Any, cache: Any, *, forward: Any = forward, **options: Any) -> Any:
            logits = forward(tokens, cache, **options).clone()
            if len(logits) and cache.length > bad >= cache.length - len(logits):
                logits[bad - cache.length] = float("nan")
            return logits

        monkeypatch.setattr(engine._decoder, "forward", spoilt)
        got = []
        with pytest.raises(GenerationError) as caught:
            got += (ids_of([chunk]) for chunk in engine.generate(prompt(), GREEDY))
        assert caught.value.params == {"step": 7}
        assert engine._cache._tokens == [*prompt(), *reply[:7]]


@pytest.mark.usefixtures("eager")
def test_conversations_of_random_turns(pair: tuple[Engine, Engine]) -> None:
    rng = random.Random(0)
    ids = prompt(1)
    for _turn in range(8):
        params = replace(rng.choice(list(SETTINGS.values())), max_new_tokens=rng.randrange(1, 20))
        reply = both(pair, ids, params)
        again = rng.randrange(len(ids))
        kept = rng.choice([len(ids), again])  # go on, or go back to an earlier place
        ids = [*ids[:kept], *reply, *ids[again : again + rng.randrange(10)], rng.randrange(5, 120)]


def test_the_demo_repeats_itself_in_fewer_passes(
    demo: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed = LookupPolicy.timed
    monkeypatch.setattr(
        LookupPolicy, "timed", lambda self, count, _seconds: timed(self, count, 1 + 0.47 * count)
    )
    question = Message("user", "What is a mixture of experts?")
    params = replace(GREEDY, max_new_tokens=100)
    first = "".join(c.text for c in demo.generate(demo.encode_chat([question]), params))
    again = demo.encode_chat([question, Message("assistant", first), question])
    chunks = list(demo.generate(again, params))
    assert seen(chunks) == [
        replace(chunk, usage=chunks[-1].usage if chunk.finish_reason else chunk.usage)
        for chunk in seen(demo.generate(again, params, lookup=False))
    ]
    passes = chunks[-1].passes
    proposed, accepted = (sum(column) for column in zip(*passes, strict=True))
    assert accepted / proposed > 0.8
    assert sum(1 + 0.47 * one.proposed for one in passes) < 0.75 * len(ids_of(chunks))


def test_it_is_off_where_it_would_not_be_exact_or_is_not_wanted() -> None:
    path = GOLDEN / "moe-safetensors"
    plain = Engine.load(path, EngineConfig(device="cpu", precision="fp32"))
    for engine in (plain, load_exact(path, lookup=False)):
        *_, last = engine.generate([5] * 50, GREEDY)
        assert last.passes == ()
    ahead = load_exact(path)
    *_, last = ahead.generate([5] * 50, GREEDY, lookup=False)
    assert last.passes == ()
    *_, last = ahead.generate([5] * 50, GREEDY)
    assert len(last.passes) <= 23
