"""A GPU full of experts whose memory another program takes, in the middle of a session."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.fake_device import FakeDevice
from tests.runtime.offload.test_offloaded_engine import (
    GREEDY,
    Load,
    SecondHand,
    all_slots,
    config,
    load,
    prompt,
    reply,
    store,
    with_loop,
)
from xverse_runtime import batch
from xverse_runtime.config import ModelConfig
from xverse_runtime.engine import Engine
from xverse_runtime.errors import ResourceError
from xverse_runtime.kv_cache import KVPool
from xverse_runtime.offload.expert_cache import ExpertCache

__all__ = ["config", "load", "prompt", "store"]  # fixtures

MEMORY = 2**28


class Crowded(FakeDevice):
    """A device of which other programs take something."""

    @property
    def left(self) -> int:
        assert self._memory is not None
        return self._memory

    def leave_only(self, nbytes: int) -> None:
        self.take(self.left - nbytes)


def watched(engine: Engine, device: Crowded, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Every layer of every pass needs memory of the device; how much was left when it was short.

    It runs out in the middle: after attention, with uploads and prompt groups under way.
    """
    offload = engine._offload
    assert offload is not None
    shortages: list[int] = []
    needed = offload.cache.beside
    begin, prompt_pass = offload.begin, offload._prompt.__class__.__call__

    def look() -> None:
        if device.left < needed:
            shortages.append(device.left)
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 96.00 MiB.")

    def checked_begin(*args: Any) -> Any:
        look()
        return begin(*args)

    def checked_prompt(self: Any, layer: int, *args: Any) -> Any:
        x = prompt_pass(self, layer, *args)
        if layer == 1:
            look()
        return x

    monkeypatch.setattr(offload, "begin", checked_begin)
    monkeypatch.setattr(offload._prompt.__class__, "__call__", checked_prompt)
    return shortages


@pytest.mark.parametrize("loop", ["host", "pieces", "graphs"])
@pytest.mark.parametrize("most_few", [1, 64])
@pytest.mark.parametrize("at", [0, 1, 7])
def test_slots_are_given_back_and_the_text_stays(
    load: Load,
    config: ModelConfig,
    prompt: list[int],
    monkeypatch: pytest.MonkeyPatch,
    at: int,
    most_few: int,
    loop: str,
) -> None:
    whole, _, _ = load(all_slots(config), most_few=most_few, kv="int8")
    expected = reply(whole, prompt)
    slots, device = all_slots(config) // 2, Crowded(random.Random(at), memory=MEMORY)
    engine, _, told = load(slots, device=device, most_few=most_few, kv="int8")
    recorder = SecondHand() if loop == "graphs" else None
    if loop != "host":
        with_loop(engine, recorder)
    offload = engine._offload
    assert offload is not None
    block = offload.cache.host.layout.block_bytes
    assert reply(engine, prompt) == expected
    engine._cache.truncate(0)
    with monkeypatch.context() as patch:
        shortages = watched(engine, device, patch)
        if at == 0:
            device.leave_only(offload.cache.beside - 3 * block)
        found: list[int] = []
        for chunk in engine.generate(prompt, GREEDY):
            found += chunk.token_ids
            if len(found) == at:
                device.leave_only(offload.cache.beside - 3 * block)
        assert found == expected
        assert len(shortages) >= 1
    assert {code for code, _ in told} == {"offload.fewer_slots"}
    assert told[-1][1] == {"slots": offload.slots, "wished": slots}
    assert offload.slots <= slots - 3
    assert reply(engine, prompt) == expected
    if recorder is not None:
        parts = 2 * config.num_layers + 1
        assert recorder.recorded == 2 * parts  # captured anew, once, since the pool moved


def test_the_order_of_the_rungs(
    load: Load, config: ModelConfig, prompt: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys and values first: there a few slots' worth is to be had for less."""
    device = Crowded(memory=MEMORY)
    engine, _, told = load(all_slots(config) // 2, device=device)
    with_loop(engine, SecondHand())
    assert engine._offload is not None
    reply(engine, prompt)  # takes what is taken once
    engine._cache.truncate(0)
    watched(engine, device, monkeypatch)
    device.leave_only(engine._offload.cache.beside - 1)
    assert len(reply(engine, prompt)) == GREEDY.max_new_tokens
    assert list(dict.fromkeys(code for code, _ in told)) == [
        "memory.int8_cache",
        "offload.fewer_slots",
    ]
    rounded, _, _ = load(all_slots(config), kv="int8")
    assert reply(engine, prompt) == reply(rounded, prompt)


def test_no_slots_left(
    load: Load, config: ModelConfig, prompt: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error that names what is missing; with memory the session goes on, as slow as it is."""
    whole, _, _ = load(all_slots(config), kv="int8")
    device = Crowded(memory=MEMORY)
    engine, _, told = load(all_slots(config) // 3, device=device, kv="int8")
    offload = engine._offload
    assert offload is not None
    watched(engine, device, monkeypatch)
    taken = device.left + len(offload.cache.pool) * offload.cache.host.layout.block_bytes
    device.take(taken)
    for _ in range(2):
        with pytest.raises(ResourceError) as caught:
            reply(engine, prompt)
        assert caught.value.code == "memory.exhausted"
    assert (offload.slots, offload.are_here) == (0, False)
    device.take(-taken)
    assert reply(engine, prompt) == reply(whole, prompt)
    assert told == [
        ("offload.fewer_slots", {"slots": 0, "wished": all_slots(config) // 3}),
    ]


@pytest.mark.parametrize("most_few", [1, 64])
def test_a_gpu_that_held_everything(
    load: Load,
    config: ModelConfig,
    prompt: list[int],
    most_few: int,
) -> None:
    """It had no staging. Now whole layers pass through, in the order that their sums had."""
    wishes: dict[str, Any] = {"staged": 0, "pinned": False, "kv": "int8", "most_few": most_few}
    whole, _, _ = load(all_slots(config), **wishes)
    expected = reply(whole, prompt)
    device = Crowded(memory=MEMORY)
    engine, _, told = load(all_slots(config), device=device, **wishes)
    offload = engine._offload
    assert offload is not None
    with_loop(engine, SecondHand())
    assert reply(engine, prompt) == expected
    for _ in range(4):
        assert engine._ladder.give_up()
        engine._cache.truncate(0)
        assert reply(engine, prompt) == expected
    assert {code for code, _ in told} == {"offload.fewer_slots"}
    assert offload.slots == all_slots(config) - 4
    assert offload.cache.staged == config.num_experts
    assert reply(engine, [*prompt, *expected]) == reply(whole, [*prompt, *expected])


def test_a_batch_gives_slots_back(
    load: Load, config: ModelConfig, prompt: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    device = Crowded(memory=MEMORY)
    engine, _, told = load(all_slots(config) // 2, device=device, kv="int8")
    prompts = [prompt, prompt[:3], [5, 9, 200, 7]]
    single = [reply(engine, ids) for ids in prompts]
    offload = engine._offload
    assert offload is not None
    watched(engine, device, monkeypatch)
    tokens: list[list[int]] = [[] for _ in prompts]
    for count, (number, chunk) in enumerate(engine.generate_batch(prompts, GREEDY, sequences=2)):
        tokens[number] += chunk.token_ids
        if count == 9:
            device.leave_only(offload.cache.beside - 1)
    assert tokens == single
    assert {code for code, _ in told} == {"offload.fewer_slots"}


class Occupied(KVPool):
    """A pool on the fake device: its memory is of the same total."""

    device: Crowded

    def come_back(self) -> None:
        if self.device.left < self.nbytes:
            raise torch.OutOfMemoryError("fake memory is full")
        super().come_back()
        self.device.take(self.nbytes)

    def release(self) -> None:
        super().release()
        self.device.take(-self.nbytes)


@pytest.mark.parametrize(("context", "short"), [(64, 0), (64, 2), (150, 7)])
def test_slots_are_lent_to_a_batch(
    load: Load,
    config: ModelConfig,
    prompt: list[int],
    monkeypatch: pytest.MonkeyPatch,
    context: int,
    short: int,
) -> None:
    """As many as its caches lack, or half of them; they are there again afterwards."""
    device, before = Crowded(memory=MEMORY), all_slots(config) // 2
    engine, _, told = load(before, device=device, kv="int8")
    with_loop(engine, SecondHand())
    offload = engine._offload
    assert offload is not None
    prompts = [prompt, prompt[:3], [5, 9, 200, 7]]
    params = replace(GREEDY, max_new_tokens=context - len(prompt))
    single = [reply(engine, ids, params) for ids in prompts]
    block = offload.cache.host.layout.block_bytes
    caches = KVPool.bytes_needed(config, context, torch.int8, 3)
    monkeypatch.setattr(Occupied, "device", device, raising=False)
    monkeypatch.setattr(batch, "KVPool", Occupied)
    monkeypatch.setattr(offload.cache, "beside", 0)
    device.leave_only(caches - short * block)
    tokens: list[list[int]] = [[] for _ in prompts]
    held: set[int] = set()
    for number, chunk in engine.generate_batch(prompts, params, sequences=3):
        tokens[number] += chunk.token_ids
        held.add(offload.slots)
    assert tokens == single
    lent = min(short, before // 2)
    assert held == {before - lent}
    expected = [("offload.lent_slots", {"slots": before - lent, "wished": before})] if lent else []
    if short > lent:  # more than half would have been needed
        expected.append(("memory.fewer_sequences", {"sequences": 1}))
    assert told == expected
    assert (offload.slots, offload.are_here) == (before, True)
    assert reply(engine, prompt, params) == single[0]


def test_lent_slots_that_another_program_takes(
    load: Load, config: ModelConfig, prompt: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The batch is whole, and the session goes on with what is left."""
    device, before = Crowded(memory=MEMORY), all_slots(config) // 2
    engine, _, _ = load(before, device=device, kv="int8")
    offload = engine._offload
    assert offload is not None
    expected = reply(engine, prompt)
    monkeypatch.setattr(offload.cache, "beside", 0)
    block = offload.cache.host.layout.block_bytes
    device.leave_only(0)
    for _ in engine.generate_batch([prompt, [7, 8]], GREEDY, sequences=2):
        lent = before - offload.slots
        device.leave_only(min(device.left, block - 1))
    assert (offload.slots, offload.are_here) == (before - lent, True)
    assert lent > 0
    assert reply(engine, prompt) == expected


def test_a_batch_that_is_broken_off_gives_slots_back(
    load: Load, config: ModelConfig, prompt: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    device, before = Crowded(memory=MEMORY), all_slots(config) // 2
    engine, _, _ = load(before, device=device, kv="int8")
    offload = engine._offload
    assert offload is not None
    reply(engine, prompt)
    monkeypatch.setattr(offload.cache, "beside", 0)
    device.leave_only(0)
    chunks = engine.generate_batch([prompt, [7, 8]], GREEDY, sequences=2)
    next(chunks)
    assert offload.slots < before
    chunks.close()
    assert offload.slots == before


@pytest.mark.parametrize("at", ["leaving", "lending", "taking back", "loading"])
def test_lent_slots_are_not_lost_to_ctrl_c(
    load: Load, config: ModelConfig, prompt: list[int], monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    """Wherever it strikes, the session goes on with all slots."""
    device, before = Crowded(memory=MEMORY), all_slots(config) // 2
    engine, _, _ = load(before, device=device, kv="int8")
    offload = engine._offload
    assert offload is not None
    expected = reply(engine, prompt)
    monkeypatch.setattr(offload.cache, "beside", 0)
    device.leave_only(0)

    with monkeypatch.context() as patch:
        if at == "leaving":
            patch.setattr(engine._ladder, "moved", interrupts_once(engine._ladder.moved))
        if at == "lending":
            patch.setattr(engine._ladder, "attempt", interrupts_once(engine._ladder.attempt, at=2))
        chunks = engine.generate_batch([prompt, [7, 8]], GREEDY, sequences=2)
        if at in ("taking back", "loading"):
            next(chunks)
            assert offload.slots < before
        if at == "taking back":
            patch.setattr(offload.uploads, "settle", interrupts_once(offload.uploads.settle))
        if at == "loading":
            patch.setattr(device, "upload", interrupts_once(device.upload))
        with pytest.raises(KeyboardInterrupt):
            chunks.close() if at in ("taking back", "loading") else next(chunks)
    assert offload.slots == before
    engine._cache.truncate(0)
    assert reply(engine, prompt) == expected
    assert (offload.slots, offload.are_here) == (before, True)


def interrupts_once(real: Any, at: int = 1) -> Any:
    """A call like another one, in which Ctrl-C is pressed the first time, or another one."""
    calls = 0

    def call(*args: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == at:
            raise KeyboardInterrupt
        return real(*args, **named)

    return call


@pytest.mark.parametrize("few_layers", [False, True])
def test_what_a_full_gpu_lends_is_more_than_the_staging_that_it_then_needs(
    load: Load,
    config: ModelConfig,
    prompt: list[int],
    monkeypatch: pytest.MonkeyPatch,
    few_layers: bool,
) -> None:
    """Nothing, where it would be less; and with all slots back there is no staging any more."""
    if not few_layers:  # beside all the slots of many, staging is little
        monkeypatch.setattr(
            ExpertCache, "staged_with", lambda _self, slots: 0 if slots == before else 3
        )
    device, before = Crowded(memory=MEMORY), all_slots(config)
    engine, _, told = load(before, device=device, kv="int8", staged=0, most_few=64)
    offload = engine._offload
    assert offload is not None
    prompts = [prompt, prompt[:3], [5, 9, 200, 7]]
    single = [reply(engine, ids) for ids in prompts]
    monkeypatch.setattr(offload.cache, "beside", 0)
    block = offload.cache.host.layout.block_bytes
    caches = KVPool.bytes_needed(config, len(prompt) + GREEDY.max_new_tokens, torch.int8, 3)
    left = caches - 2 * block
    device.leave_only(left)
    tokens: list[list[int]] = [[] for _ in prompts]
    lent: set[int] = set()
    for number, chunk in engine.generate_batch(prompts, GREEDY, sequences=3):
        tokens[number] += chunk.token_ids
        lent.add(before - offload.slots)
        assert device.left >= caches or offload.slots == before
    assert tokens == single
    assert lent == {0 if few_layers else 2 + 2 * 3}
    assert [code for code, _ in told] == ([] if few_layers else ["offload.lent_slots"])
    assert (offload.slots, offload.cache.staged, device.left) == (before, 0, left)
    assert reply(engine, prompt) == single[0]


def test_no_memory_for_what_was_not_lent_is_an_error_with_a_hint(
    load: Load, config: ModelConfig, prompt: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    device = Crowded(memory=MEMORY)
    engine, _, _ = load(all_slots(config) // 2, device=device, kv="int8")
    offload = engine._offload
    assert offload is not None
    device.leave_only(0)
    leave = offload.leave

    def leave_to_others(slots: int) -> None:
        leave(slots)
        device.leave_only(0)

    monkeypatch.setattr(offload, "leave", leave_to_others)
    with pytest.raises(ResourceError) as caught:
        list(engine.generate_batch([prompt], GREEDY))
    assert caught.value.code == "memory.exhausted"


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_experts_that_come_back_by_half_are_not_there(
    load: Load,
    config: ModelConfig,
    prompt: list[int],
    monkeypatch: pytest.MonkeyPatch,
    error: type[BaseException],
) -> None:
    """Ctrl-C, or a host without room for a buffer: the tables must not speak of garbage."""
    device = Crowded(memory=MEMORY)
    engine, _, _ = load(all_slots(config) // 2, device=device)
    offload = engine._offload
    assert offload is not None
    expected = reply(engine, prompt)
    left, slots = device.left, offload.slots
    offload.leave(slots)

    def broken(*_args: Any) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(device, "upload", broken)
        with pytest.raises(error):
            offload.come_back()
    assert not offload.are_here
    engine._cache.truncate(0)
    assert reply(engine, prompt) == expected
    assert (offload.slots, offload.are_here, device.left) == (slots, True, left)
