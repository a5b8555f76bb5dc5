"""Caches of other conversations: what is kept, what it saves, and that nothing changes by it."""

from __future__ import annotations

import pytest
import torch

from tests.runtime.helpers import GOLDEN, load_decoder
from xverse_runtime.config import EngineConfig
from xverse_runtime.engine import Engine
from xverse_runtime.expert_load import ExpertLoad
from xverse_runtime.kept_caches import LEAST_TOKENS, KeptCaches
from xverse_runtime.kv_cache import KVCache
from xverse_runtime.types import GenerationChunk, SamplingParams

GREEDY = SamplingParams(temperature=0, max_new_tokens=6)
LONG = 48


def engine_of(keep: bool, kv: str = "auto") -> Engine:
    config = EngineConfig(device="cpu", precision="fp32", kv=kv)
    engine = Engine.load(GOLDEN / "moe-bin", config)
    if keep:
        engine.keep_conversations()
    return engine


def prompt(first: int) -> list[int]:
    return [first, *range(10, 10 + LONG)]


def last_of(engine: Engine, ids: list[int]) -> tuple[list[int], GenerationChunk]:
    chunks = list(engine.generate(ids, GREEDY))
    return [token for chunk in chunks for token in chunk.token_ids], chunks[-1]


@pytest.mark.parametrize("kv", ["auto", "int8"])
def test_switching_back_computes_nothing_again_and_changes_nothing(kv: str) -> None:
    keeping, plain = engine_of(True, kv), engine_of(False, kv)
    said, expected = {}, {}
    for first in (4, 5, 6):
        said[first], _ = last_of(keeping, prompt(first))
        expected[first], _ = last_of(plain, prompt(first))
    for first in (5, 4, 6):
        ids = [*prompt(first), *said[first], 7, 8]
        tokens, chunk = last_of(keeping, ids)
        assert chunk.usage.cached_tokens >= LONG
        plain_tokens, plain_chunk = last_of(plain, ids)
        assert plain_chunk.usage.cached_tokens == 0
        assert tokens == plain_tokens
    assert said == expected
    kept = dict(keeping.statistics().memory)["kept"]
    assert kept > 0
    assert "kept" not in dict(plain.statistics().memory)


def test_a_turn_taken_back_is_no_other_conversation() -> None:
    engine = engine_of(True)
    last_of(engine, prompt(4))
    _, chunk = last_of(engine, prompt(4)[:5])
    assert chunk.usage.cached_tokens == 4
    assert dict(engine.statistics().memory)["kept"] == 0


def filled(first: int, length: int) -> KVCache:
    decoder, cache = load_decoder(GOLDEN / "moe-bin")
    decoder.forward([first, *range(10, 9 + length)], cache)
    return cache


def test_the_oldest_go_when_there_is_no_room() -> None:
    cache = filled(4, LONG)
    one = cache.nbytes
    keys = cache.pool.keys[0][0, :, :LONG].clone()
    kept = KeptCaches(lambda: 2 * one)
    for first in (5, 6, 7):
        kept.prepare(cache, [first, 9])
        cache.fill([first, *cache.tokens[1:]], cache.copies())
    assert kept.nbytes == 2 * one
    kept.prepare(cache, prompt(4))
    assert cache.tokens[0] == 7  # the first one was given up
    kept.prepare(cache, [6, *cache.tokens[1:]])
    assert cache.tokens[0] == 6
    assert torch.equal(cache.pool.keys[0][0, :, :LONG], keys)


def test_nothing_is_kept_without_room_or_where_it_does_not_pay() -> None:
    cache = filled(4, LONG)
    kept = KeptCaches(lambda: cache.nbytes - 1)
    kept.prepare(cache, [5, 6])
    assert kept.nbytes == 0
    cache.truncate(LEAST_TOKENS - 1)
    kept = KeptCaches(lambda: 2**40)
    kept.prepare(cache, [5, 6])
    assert kept.nbytes == 0


def test_a_later_state_replaces_an_earlier_one() -> None:
    cache = filled(4, LONG)
    kept = KeptCaches(lambda: 2**40)
    tokens, copies = cache.tokens, cache.copies()
    cache.truncate(LONG - 8)
    kept.prepare(cache, [5, 6])
    cache.fill(tokens, copies)
    kept.prepare(cache, [5, 6])
    assert kept.nbytes == cache.nbytes


def test_expert_load_counts_what_the_routers_choose() -> None:
    decoder, cache = load_decoder(GOLDEN / "moe-bin")
    load = ExpertLoad(decoder.config, torch.device("cpu"))
    seen: list[torch.Tensor] = []

    def observe(layer: int, logits: torch.Tensor) -> None:
        load(layer, logits)
        seen.append(logits)

    decoder.forward(list(range(10, 25)), cache, observer=observe)
    for counts, logits in zip(load.counts, seen, strict=True):
        chosen = logits.argsort(descending=True)[:, : decoder.config.top_k].flatten()
        assert list(counts) == chosen.bincount(minlength=decoder.config.num_experts).tolist()


def test_an_engine_tells_how_its_experts_worked() -> None:
    engine = engine_of(False)
    assert sum(map(sum, engine.statistics().expert_load)) == 0
    last_of(engine, prompt(4))
    load = engine.statistics().expert_load
    config = load_decoder(GOLDEN / "moe-bin")[0].config
    assert len(load) == config.num_layers
    assert all(sum(layer) == (LONG + 1) * config.top_k for layer in load)
