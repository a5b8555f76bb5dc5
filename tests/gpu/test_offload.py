"""Expert offload on a real GPU: bytes, order, graphs, and the text beside the whole model's."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.runtime.offload.test_offloaded_engine import (
    MACHINE,
    all_slots,
    config,
    placement,
    prompt,
    reply,
    store,
)
from xverse_kernels.backend import select_backend
from xverse_runtime import engine_parts
from xverse_runtime.config import EngineConfig, ModelConfig
from xverse_runtime.engine import Engine
from xverse_runtime.fit import Fit
from xverse_runtime.offload.pieces import GraphRecorder
from xverse_runtime.offload.setup import ModelPlan
from xverse_runtime.offload.transfer import CudaQueues
from xverse_runtime.types import SamplingParams

__all__ = ["config", "prompt", "store"]  # fixtures

GREEDY = SamplingParams(temperature=0, max_new_tokens=40)
Load = Callable[..., Engine]


@pytest.fixture
def load(store: Path, config: ModelConfig, monkeypatch: pytest.MonkeyPatch) -> Load:
    pytest.importorskip("tokenizers")  # an engine reads its text; a plain checkout can lack it

    def make(
        slots: int,
        *,
        pinned: bool = True,
        most_few: int | None = None,
        told: list[str] | None = None,
        **how: bool,
    ) -> Engine:
        device = torch.device("cuda", torch.cuda.current_device())
        plan = ModelPlan(placement(config, slots, pinned=pinned), MACHINE)
        monkeypatch.setattr(
            engine_parts, "fit_model", lambda *_: Fit(device, "as if", 512, plan, divided=True)
        )
        said = [] if told is None else told
        engine = Engine.load(
            store,
            EngineConfig(device="cuda", **how),
            on_adjustment=lambda code, _facts: said.append(code),
        )
        assert engine._offload is not None
        if most_few is not None:
            engine._offload.most_few = most_few
        return engine

    return make


@pytest.mark.parametrize("by_kernel", [False, True])
def test_uploads_bring_the_bytes(by_kernel: bool) -> None:
    device = torch.device("cuda", torch.cuda.current_device())
    queues = CudaQueues(device, select_backend("triton", device) if by_kernel else None)
    assert queues.reads_in_place == by_kernel
    pool = queues.empty(8, 4096, dtype=torch.uint8)
    blocks = torch.randint(0, 256, (8, 4096), dtype=torch.uint8)
    assert queues.pin(blocks)
    for turn in range(50):
        after = queues.mark() if turn % 2 else None
        copies = [(blocks[row], (row + turn) % 8) for row in range(8)]
        upload = queues.upload(pool, copies, after=after)
        queues.compute_after(upload)
        back = queues.host_buffer(8, 4096, dtype=torch.uint8)
        queues.to_host([(pool.view(torch.int32), back.view(torch.int32))])
        mark = queues.mark()
        mark.wait()
        assert torch.equal(back, blocks.roll(turn, 0))
        assert upload.is_done()
        seconds = upload.seconds()
        assert seconds is not None
        assert seconds > 0
    queues.close()


def test_slots_hold_what_the_table_says(load: Load, config: ModelConfig, prompt: list[int]) -> None:
    engine = load(all_slots(config) // 2, most_few=4)
    reply(engine, prompt, GREEDY)
    offload = engine._offload
    assert offload is not None
    cache = offload.cache
    torch.cuda.synchronize()
    offload.uploads.settle()
    for layer in range(config.num_layers):
        cache.update_table(layer)
        table = cache.table(layer).cpu()
        for expert, row in enumerate(cache.slot_rows(layer)):
            assert int(table[expert]) == row
            if row >= 0:
                assert torch.equal(cache.pool[row].cpu(), cache.host.block((layer, expert)))


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7])
@pytest.mark.parametrize("pinned", [True, False])
def test_logits_beside_the_whole_model(
    load: Load, config: ModelConfig, prompt: list[int], share: float, pinned: bool
) -> None:
    """The CPU rounds activations to integers where the GPU keeps bf16."""
    for most_few in (1, 64):
        whole = load(all_slots(config), most_few=most_few)
        expected = whole._decoder.forward(prompt, whole._cache, logits_for=slice(None)).float()
        some = load(int(share * all_slots(config)), pinned=pinned, most_few=most_few)
        logits = some._decoder.forward(prompt, some._cache, logits_for=slice(None)).float()
        error = (logits - expected).norm(dim=1) / expected.norm(dim=1)
        assert error.median() < (0.05 if most_few > 1 else 0.01)


def test_a_prompt_does_not_tell_what_was_cached(
    load: Load, config: ModelConfig, prompt: list[int]
) -> None:
    """Only the GPU computes here: the same bits."""
    whole = load(all_slots(config), most_few=1)
    expected = whole._decoder.forward(prompt, whole._cache, logits_for=slice(None))
    for share in (0.0, 0.3, 0.7):
        some = load(int(share * all_slots(config)), most_few=1)
        assert torch.equal(
            some._decoder.forward(prompt, some._cache, logits_for=slice(None)), expected
        )


def test_graphs_change_nothing(load: Load, config: ModelConfig, prompt: list[int]) -> None:
    """With a slot for every expert only the GPU computes, so every bit is the same."""
    told: list[str] = []
    plain = load(all_slots(config), most_few=1, cuda_graph=False)
    graphs = load(all_slots(config), most_few=1, told=told, cuda_graph=True)
    for params in (GREEDY, replace(GREEDY, temperature=0.7, top_k=20, seed=3)):
        expected = reply(plain, prompt, params)
        for _ in range(3):
            assert reply(graphs, prompt, params) == expected
    assert not told


@pytest.mark.parametrize("by_thread", [False, True])
def test_pinned_memory_that_is_given_back_while_a_graph_is_captured(by_thread: bool) -> None:
    """By another engine that is garbage, or that another thread closes: the capture goes on."""
    device = torch.device("cuda", torch.cuda.current_device())
    x = torch.zeros(256, device=device)
    assert bool((x + 1 == 1).all())  # loads what is captured
    thresholds = gc.get_threshold()
    gc.set_threshold(0)
    queues = CudaQueues(device)
    assert queues.pin(torch.ones(2**20, dtype=torch.uint8))
    closing = threading.Thread(target=queues._close)
    gone = weakref.ref(queues)
    itself: list[object] = [queues]
    itself.append(itself)
    del queues, itself

    def work() -> Tensor:
        gc.set_threshold(1, 1, 1)
        assert [[] for _ in range(1000)]
        if by_thread:
            closing.start()
            closing.join()
        assert gone() is not None
        return x + 1

    try:
        again, result = GraphRecorder(device).record(work)
        gc.collect()
        assert gone() is None
    finally:
        gc.set_threshold(*thresholds)
    again.replay()
    assert bool((result == 1).all())


def test_no_room_for_what_is_captured() -> None:
    """That is what is raised, and captures go on."""
    recorder = GraphRecorder(torch.device("cuda", torch.cuda.current_device()))
    x = torch.zeros(256, device="cuda")
    free = torch.cuda.mem_get_info()[0]

    def too_much() -> Tensor:
        y = x + 1
        return y + torch.empty(2 * free, dtype=torch.uint8, device="cuda")

    for turn in range(3):
        with pytest.raises(torch.OutOfMemoryError):
            recorder.record(too_much)
        assert not torch.cuda.is_current_stream_capturing()
        again, result = recorder.record(lambda turn=turn: x + turn)
        again.replay()
        assert bool((result == turn).all())


@pytest.mark.parametrize("cuda_graph", [True, False])
def test_a_pool_that_moved(
    load: Load, config: ModelConfig, prompt: list[int], cuda_graph: bool
) -> None:
    """Graphs are captured anew, twice: the text of a GPU that computes all experts stays."""
    told: list[str] = []
    engine = load(all_slots(config), most_few=1, told=told, cuda_graph=cuda_graph)
    offload, expected = engine._offload, reply(engine, prompt, GREEDY)
    assert offload is not None
    for _ in range(2):
        blocker = torch.empty(2**20, device="cuda")  # so that the pool does not come back there
        offload.leave(all_slots(config))
        engine._ladder.moved()
        engine._cache.truncate(0)
        assert reply(engine, prompt, GREEDY) == expected
        del blocker
    assert "offload.no_graphs" not in told


def test_slots_given_back_leave_prompts_as_they_were(
    load: Load, config: ModelConfig, prompt: list[int]
) -> None:
    engine = load(all_slots(config), most_few=1)
    offload = engine._offload
    assert offload is not None
    expected = engine._decoder.forward(prompt, engine._cache, logits_for=slice(None))
    before = torch.cuda.memory_allocated()
    for slots in (all_slots(config) // 2, 3, 0):
        offload.leave(slots)
        offload.come_back()
        engine._cache.truncate(0)
        logits = engine._decoder.forward(prompt, engine._cache, logits_for=slice(None))
        assert torch.equal(logits, expected)
    assert torch.cuda.memory_allocated() < before


@pytest.mark.parametrize("cuda_graph", [True, False])
def test_replies(load: Load, config: ModelConfig, prompt: list[int], cuda_graph: bool) -> None:
    """CPU and GPU round differently, so texts of random weights part; but all paths are taken."""
    some = load(all_slots(config) // 2, cuda_graph=cuda_graph)
    for _ in range(3):
        assert len(reply(some, prompt, GREEDY)) == GREEDY.max_new_tokens
    statistics = some.offload_statistics
    assert statistics is not None
    assert min(statistics.hits, statistics.on_cpu) > 0
    assert statistics.background_bytes + statistics.critical_bytes > 0
