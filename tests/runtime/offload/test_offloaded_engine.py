"""A whole model with some of its experts on the fake device: the same text as with all of them."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from weakref import WeakSet

import pytest
import torch

from tests.fake_device import FakeDevice
from tests.runtime.helpers import GOLDEN, expected_cases
from xverse_kernels.cpu.extension import native
from xverse_runtime import engine_parts
from xverse_runtime.config import EngineConfig, ModelConfig
from xverse_runtime.decode_loop import DecodeLoop
from xverse_runtime.decoding import TorchSampler
from xverse_runtime.engine import Engine
from xverse_runtime.errors import ResourceError
from xverse_runtime.fit import Fit
from xverse_runtime.model_dir import ModelDirectory
from xverse_runtime.model_sizes import ModelSizes
from xverse_runtime.offload.disk_watch import DiskWatch
from xverse_runtime.offload.machine import Machine
from xverse_runtime.offload.machines import find_machine
from xverse_runtime.offload.pieces import Recording
from xverse_runtime.offload.piecewise_step import PiecewiseStep
from xverse_runtime.offload.setup import ModelPlan
from xverse_runtime.prediction import Placement
from xverse_runtime.store.convert import convert_checkpoint
from xverse_runtime.store.precision import PRESETS
from xverse_runtime.types import CancelFlag, LoadProgress, SamplingParams

CPU = torch.device("cpu")
BACKEND = "cpu" if native is not None else "reference"  # of the fake device, as of the host
NAME = "moe-gqa"
GREEDY = SamplingParams(temperature=0, max_new_tokens=20, repetition_penalty=1.1)
MACHINE: Machine = find_machine("RTX 4060 8GB")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stores") / "int4"
    convert_checkpoint(GOLDEN / NAME, path, PRESETS["int4"])
    return path


@pytest.fixture(scope="module")
def config(store: Path) -> ModelConfig:
    return ModelConfig.from_dir(ModelDirectory.open(store))


@pytest.fixture(scope="module")
def prompt() -> list[int]:
    ids: list[int] = expected_cases(NAME)[0]["prompt_token_ids"]
    return ids


def placement(
    config: ModelConfig, slots: int, *, staged: int = 2, pinned: bool = True, kv: str = "bf16"
) -> Placement:
    sizes = ModelSizes(config, PRESETS["int4"])
    staging = 2 * staged * sizes.block
    return Placement(
        sizes=sizes,
        device="cuda",
        precision="int4",
        context=512,
        kv=kv,
        embedding_device="cpu",
        expert_slots=slots,
        prefill_chunk=16,
        workspace=0,
        staging=staging,
        pinned=staging + (sizes.routed if pinned else 0),
        host=0,
        mapped=0,
    )


Load = Callable[..., tuple[Engine, FakeDevice, list[tuple[str, Any]]]]


@pytest.fixture
def load(store: Path, config: ModelConfig, monkeypatch: pytest.MonkeyPatch) -> Load:
    """An engine that was loaded as for a GPU that holds so many experts."""

    def make(
        slots: int,
        *,
        device: FakeDevice | None = None,
        most_few: int | None = None,
        backend: str = BACKEND,
        progress: Callable[[LoadProgress], None] | None = None,
        **wishes: Any,
    ) -> tuple[Engine, FakeDevice, list[tuple[str, Any]]]:
        device = device or FakeDevice(random.Random(slots))
        plan = ModelPlan(placement(config, slots, **wishes), MACHINE)
        monkeypatch.setattr(engine_parts, "CudaQueues", lambda *_: device)
        monkeypatch.setattr(
            engine_parts, "fit_model", lambda *_: Fit(CPU, "as if", 512, plan, divided=True)
        )
        told: list[tuple[str, Any]] = []
        engine = Engine.load(
            store,
            EngineConfig(device="cpu", backend=backend, lookup=False),
            progress=progress,
            on_adjustment=lambda code, facts: told.append((code, facts)),
        )
        assert engine._offload is not None
        if most_few is not None:
            engine._offload.most_few = most_few
        return engine, device, told

    return make


def reply(engine: Engine, ids: list[int], params: SamplingParams = GREEDY) -> list[int]:
    return [token for chunk in engine.generate(ids, params) for token in chunk.token_ids]


def all_slots(config: ModelConfig) -> int:
    return config.num_layers * config.num_experts


class SecondHand:
    """A recorder on the CPU: a replay runs what was recorded again, on the same tensors."""

    def __init__(self, fails_at: int | None = None) -> None:
        self.recorded = 0
        self.replays = 0
        self._fails_at = fails_at
        self.kept: WeakSet[Recording] = WeakSet()

    def record(self, work: Callable[[], Any]) -> tuple[Recording, Any]:
        self.recorded += 1
        if self.recorded == self._fails_at:
            raise RuntimeError("this cannot be captured")
        recorder, result, first = self, work(), True

        class Again:
            def replay(self) -> None:
                nonlocal first
                recorder.replays += 1
                if not first:
                    copy_over(work(), result)
                first = False

        again = Again()
        self.kept.add(again)
        return again, result


def copy_over(source: Any, target: Any) -> None:
    """Tensors within tuples; everything else stays what it was."""
    if isinstance(target, torch.Tensor):
        target.copy_(source)
    elif isinstance(target, tuple):
        for one, other in zip(source, target, strict=True):
            copy_over(one, other)


def with_loop(engine: Engine, recorder: SecondHand | None = None) -> Engine:
    """Tokens are chosen on the device, as on a GPU."""
    offload, pool = engine._offload, engine._cache.pool
    assert offload is not None
    step = PiecewiseStep(engine._decoder, offload, recorder)
    sampler = TorchSampler(pool.sequences, CPU)
    engine._loop = DecodeLoop(engine._decoder, pool, sampler, offloaded=step)
    engine._ladder.hold_steps(engine._loop)
    return engine


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.9])
@pytest.mark.parametrize("most_few", [1, 64])
def test_the_text_does_not_tell_what_was_cached(
    load: Load, config: ModelConfig, prompt: list[int], share: float, most_few: int
) -> None:
    whole, _, _ = load(all_slots(config), most_few=most_few)
    expected = reply(whole, prompt)
    assert whole.offload_statistics is not None
    assert whole.offload_statistics.hit_rate == 1.0
    some, device, told = load(int(share * all_slots(config)), most_few=most_few)
    assert reply(some, prompt) == expected
    assert reply(some, [*prompt, *expected, 7, 8]) == reply(whole, [*prompt, *expected, 7, 8])
    assert not told
    statistics = some.offload_statistics
    assert statistics is not None
    assert statistics.hit_rate is not None
    assert statistics.hit_rate < 1.0
    assert statistics.on_cpu > 0
    assert device.uploads > 0


@pytest.mark.parametrize("most_few", [1, 64])
def test_with_a_cache_in_int8(
    load: Load, config: ModelConfig, prompt: list[int], most_few: int
) -> None:
    """The plan asked for it; the text still does not tell what was cached."""
    whole, _, _ = load(all_slots(config), most_few=most_few, kv="int8")
    some, _, _ = load(all_slots(config) // 3, most_few=most_few, kv="int8")
    assert whole._cache.pool.dtype == some._cache.pool.dtype == torch.int8
    expected = reply(whole, prompt)
    assert reply(some, prompt) == expected
    assert reply(with_loop(some, SecondHand()), prompt) == reply(with_loop(whole), prompt)


def test_close_to_the_model_as_it_runs_without_offload(
    load: Load, store: Path, config: ModelConfig, prompt: list[int]
) -> None:
    """Only the order of sums differs, and now and then an integer that an activation rounds to."""
    plain = Engine.load(store, EngineConfig(device="cpu", backend=BACKEND, lookup=False))
    expected = plain._decoder.forward(prompt, plain._cache, logits_for=slice(None))
    for most_few in (1, 64):
        some, _, _ = load(all_slots(config) // 3, most_few=most_few)
        logits = some._decoder.forward(prompt, some._cache, logits_for=slice(None))
        error = (logits - expected).norm(dim=1) / expected.norm(dim=1)
        assert error.median() < 1e-6
        assert error.max() < 0.01


@pytest.mark.parametrize("graphs", [False, True])
def test_steps_in_pieces_give_the_same_tokens(
    load: Load, config: ModelConfig, prompt: list[int], graphs: bool
) -> None:
    plain, _, _ = load(all_slots(config) // 2)
    sampled = replace(GREEDY, temperature=0.8, top_k=20, seed=3)
    recorder = SecondHand()
    pieces = with_loop(load(all_slots(config) // 3)[0], recorder if graphs else None)
    for params in (GREEDY, sampled, replace(GREEDY, max_new_tokens=2)):
        assert reply(pieces, prompt, params) == reply(plain, prompt, params)
    if graphs:
        parts = 2 * config.num_layers + 1
        assert recorder.recorded == parts
        assert recorder.replays % parts == 0
        assert recorder.replays > 10 * parts


@pytest.mark.parametrize("graphs", [False, True])
def test_steps_that_send_experts_ahead_give_the_same_tokens(
    load: Load, config: ModelConfig, prompt: list[int], graphs: bool
) -> None:
    plain, _, _ = load(all_slots(config) // 2)
    recorder = SecondHand() if graphs else None
    pieces = with_loop(load(all_slots(config) // 3, staged=3)[0], recorder)
    assert pieces._offload is not None
    assert pieces._offload.wants_guesses
    for ids in (prompt, prompt[:5], [*prompt, 9, 8]):
        assert reply(pieces, ids) == reply(plain, ids)
    statistics = pieces.offload_statistics
    assert statistics is not None
    assert 0 < statistics.prefetched_used <= statistics.prefetched


def test_nothing_is_guessed_where_nothing_can_be_sent(load: Load, config: ModelConfig) -> None:
    third = all_slots(config) // 3
    for slots, wishes in (
        (all_slots(config), {"staged": 3}),
        (third, {"staged": 2}),
        (third, {"staged": 3, "pinned": False}),
    ):
        engine, _, _ = load(slots, **wishes)
        assert engine._offload is not None
        assert not engine._offload.wants_guesses
        assert "waiting" not in engine._offload.modes.modes


def test_parts_that_cannot_be_captured_simply_run(
    load: Load, config: ModelConfig, prompt: list[int]
) -> None:
    plain, _, _ = load(all_slots(config) // 2)
    recorder = SecondHand(fails_at=3)
    pieces = with_loop(load(all_slots(config) // 3)[0], recorder)
    assert reply(pieces, prompt) == reply(plain, prompt)
    assert recorder.recorded == 3
    assert not recorder.kept  # graphs that are not replayed have memory


def test_a_batch_gives_the_replies_of_single_generations(
    load: Load, config: ModelConfig, prompt: list[int]
) -> None:
    prompts = [prompt, prompt[:3], [5, 9, 200, 7]]
    some, _, _ = load(all_slots(config) // 3)
    single = [reply(some, ids) for ids in prompts]
    tokens: list[list[int]] = [[] for _ in prompts]
    for number, chunk in some.generate_batch(prompts, GREEDY, sequences=2):
        tokens[number] += chunk.token_ids
    assert tokens == single


@pytest.mark.parametrize("pinned", [True, False])
@pytest.mark.parametrize("most_few", [1, 64])
def test_a_copy_that_could_not_be_begun_leaves_everything_right(
    load: Load,
    config: ModelConfig,
    prompt: list[int],
    monkeypatch: pytest.MonkeyPatch,
    most_few: int,
    pinned: bool,
) -> None:
    """A second Ctrl-C, or the driver: whatever the copy was for, the next reply is as ever."""
    whole, _, _ = load(all_slots(config), most_few=most_few)
    expected = reply(whole, prompt)
    engine, device, _ = load(all_slots(config) // 3, most_few=most_few, pinned=pinned)
    upload = device.upload
    for number in range(1, 60, 2):
        left = number

        def breaks_once(*args: Any, **options: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0:
                raise KeyboardInterrupt
            return upload(*args, **options)

        engine._cache.truncate(0)
        with monkeypatch.context() as patch, suppress(KeyboardInterrupt):
            patch.setattr(device, "upload", breaks_once)
            reply(engine, prompt)
        engine._cache.truncate(0)
        assert reply(engine, prompt) == expected


def test_a_cancelled_reply_leaves_everything_right(
    load: Load, config: ModelConfig, prompt: list[int]
) -> None:
    whole, _, _ = load(all_slots(config))
    expected = reply(whole, prompt)
    some, _, _ = load(all_slots(config) // 3, most_few=4)
    for looks in range(1, 30, 3):
        cancel = CancelFlag()
        count = 0

        def look(cancel: CancelFlag = cancel, looks: int = looks) -> bool:
            nonlocal count
            count += 1
            return count >= looks

        cancel.is_set = look  # type: ignore[method-assign]
        list(some.generate(prompt, GREEDY, cancel))
        assert reply(some, prompt) == expected


def test_progress_reaches_the_end(load: Load, config: ModelConfig) -> None:
    seen: list[LoadProgress] = []
    load(all_slots(config) // 3, progress=seen.append)
    assert seen[-1].done_bytes == seen[-1].total_bytes > 0
    assert [one.done_bytes for one in seen] == sorted(one.done_bytes for one in seen)


def test_memory_that_another_program_took(
    load: Load, config: ModelConfig, prompt: list[int]
) -> None:
    """Fewer slots than planned, told; the same text."""
    whole, _, _ = load(all_slots(config))
    wished = all_slots(config) // 2

    class Crowded(FakeDevice):
        def empty(self, *shape: int, dtype: torch.dtype) -> torch.Tensor:
            if dtype == torch.uint8 and shape[0] > wished // 2 + 4:
                raise torch.OutOfMemoryError("not that much in one piece")
            return super().empty(*shape, dtype=dtype)

    some, _, told = load(wished, device=Crowded())
    assert reply(some, prompt) == reply(whole, prompt)
    ((code, facts),) = told
    assert code == "offload.fewer_slots"
    assert facts["slots"] < facts["wished"] == wished


def test_not_even_the_staging_fits(load: Load) -> None:
    with pytest.raises(ResourceError) as caught:
        load(4, device=FakeDevice(memory=100))
    assert caught.value.code == "memory.exhausted"


@pytest.mark.parametrize("layers", [0, 1])
def test_memory_that_cannot_be_pinned(
    load: Load, config: ModelConfig, prompt: list[int], layers: int
) -> None:
    granted = 0

    def pins(_nbytes: int) -> bool:
        nonlocal granted
        granted += 1
        return granted <= layers

    whole, _, _ = load(all_slots(config))
    some, _, told = load(all_slots(config) // 3, device=FakeDevice(pins=pins))
    assert told == [("offload.less_pinned", {"pinned": layers, "layers": config.num_layers})]
    assert reply(some, prompt) == reply(whole, prompt)


def test_an_automatic_device_falls_back_to_the_cpu(
    store: Path, config: ModelConfig, prompt: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = ModelPlan(placement(config, 4), MACHINE)
    monkeypatch.setattr(engine_parts, "CudaQueues", lambda *_: FakeDevice(memory=100))
    monkeypatch.setattr(
        engine_parts, "fit_model", lambda *_: Fit(CPU, "as if", 512, plan, divided=True)
    )
    told: list[str] = []
    engine = Engine.load(
        store, EngineConfig(device="auto"), on_adjustment=lambda code, _: told.append(code)
    )
    assert told == ["offload.failed"]
    assert engine.offload_statistics is None
    assert reply(engine, prompt)


def test_a_gpu_that_could_compute_is_not_left_aside_without_a_word(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit = Fit(CPU, "as if", 512, wasted="Triton needs a C compiler")
    monkeypatch.setattr(engine_parts, "fit_model", lambda *_: fit)
    told: list[tuple[str, dict[str, object]]] = []
    Engine.load(
        store,
        EngineConfig(device="auto"),
        on_adjustment=lambda code, facts: told.append((code, facts)),  # type: ignore[arg-type,return-value]
    )
    assert told == [("kernels.gpu_unused", {"reason": "Triton needs a C compiler"})]


def test_waiting_for_the_disk_is_told_once() -> None:
    """Also while pages come for the first time, but not for a fault now and then or a short wait,
    nor for the time between passes."""
    told: list[int] = []
    faults, now = 0, 0.0
    watch = DiskWatch(lambda: told.append(1), lambda: faults, lambda: now)
    slow_s = 0.0
    for more, seconds in [(2, 5.0), (100, 0.7), (7, 9.0), (9, 0.7), (0, 1.0), (8, 0.7), (50, 3.0)]:
        now += 100.0
        watch.begin()
        faults, now = faults + more, now + seconds
        is_slow = more >= 8
        assert watch.end() == pytest.approx(seconds if is_slow else 0.0)
        slow_s += seconds if is_slow else 0.0
        assert len(told) == (slow_s > 2.0)


def test_the_policy_hears_of_the_right_layer(
    load: Load, config: ModelConfig, prompt: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In steps the next layer's choice is on its way before this one is finished with."""
    engine, _, _ = load(all_slots(config) // 3)
    with_loop(engine, SecondHand())
    offload = engine._offload
    assert offload is not None
    top_k, note, seen = config.top_k, offload._note, 0

    def checked(layer: int, ids: list[list[int]], probabilities: torch.Tensor) -> None:
        nonlocal seen
        seen += 1
        for row, likely in zip(ids, probabilities, strict=True):
            assert float(likely.sum()) == pytest.approx(1.0, abs=1e-4)
            assert sorted(likely.topk(top_k).indices.tolist()) == sorted(row[:top_k])
        note(layer, ids, probabilities)

    monkeypatch.setattr(offload, "_note", checked)
    reply(engine, prompt)
    assert seen > 10 * config.num_layers


def test_a_token_is_there_before_the_step_after_it(
    load: Load, config: ModelConfig, prompt: list[int]
) -> None:
    engine = with_loop(load(all_slots(config) // 3)[0])
    offload = engine._offload
    assert offload is not None
    of_prompt = None
    for number, _ in enumerate(engine.generate(prompt, replace(GREEDY, max_new_tokens=6))):
        of_prompt = offload.statistics.layers if of_prompt is None else of_prompt
        assert offload.statistics.layers == of_prompt + number * config.num_layers


def test_an_interrupt_in_the_cpus_part_leaves_nothing_behind(
    load: Load, config: ModelConfig, prompt: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, _, _ = load(all_slots(config) // 3)
    expected = reply(engine, prompt)
    offload = engine._offload
    assert offload is not None
    with monkeypatch.context() as patch:

        class Broken:
            def expert_parts(self, *_: object) -> None:
                raise KeyboardInterrupt

        patch.setattr(offload._on_host, "_kernels", Broken())
        with pytest.raises(KeyboardInterrupt):
            reply(engine, prompt[:3])
    assert reply(engine, prompt) == expected
    assert all(number == -1 for number in offload._on_host._numbers)


def test_buffers_do_not_grow_with_every_length(load: Load, config: ModelConfig) -> None:
    engine, device, _ = load(all_slots(config) // 3, most_few=32)
    reply(engine, [5, 6, 7], replace(GREEDY, max_new_tokens=3))
    before = len(device._reachable)
    for count in range(2, 30):
        reply(engine, [9 + count] * count, replace(GREEDY, max_new_tokens=2))
    assert len(device._reachable) == before


def test_the_forecast_is_for_the_context_at_hand(load: Load, config: ModelConfig) -> None:
    engine, _, _ = load(all_slots(config) // 3)
    short, full = engine.forecast(10), engine.forecast(10**6)
    assert short is not None
    assert full == engine.forecast(512)
    assert short.tokens_per_s > full.tokens_per_s
    assert 0 < full.hit_rate < 1


@pytest.mark.parametrize("most_few", [1, 64])
def test_everything_but_the_embedding(
    load: Load, config: ModelConfig, prompt: list[int], most_few: int
) -> None:
    """No staging: nothing ever moves."""
    engine, device, _ = load(all_slots(config), staged=0, pinned=False, most_few=most_few)
    loaded = device.uploads
    some, _, _ = load(all_slots(config) // 2, staged=8, most_few=most_few)
    assert reply(engine, prompt) == reply(some, prompt)
    assert device.uploads == loaded
