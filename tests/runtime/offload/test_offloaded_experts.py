"""Expert offload on the fake device: the text does not tell what was cached, and nothing is read or
overwritten too early."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from tests.fake_device import FakeDevice
from xverse_kernels.backend import KernelBackend
from xverse_kernels.cpu.backend import CpuBackend
from xverse_kernels.cpu.extension import native
from xverse_kernels.packing import INT4, ExpertBlocks, ExpertLayout, WeightFormat
from xverse_kernels.reference_backend import ReferenceBackend
from xverse_kernels.types import Norm, RoutedTokens, SwigluWeights
from xverse_runtime.offload import host_part
from xverse_runtime.offload.coordinator import Coordinator
from xverse_runtime.offload.costs import LinearCost
from xverse_runtime.offload.expert_cache import ExpertCache
from xverse_runtime.offload.expert_slots import ExpertSlots
from xverse_runtime.offload.host_experts import HostExperts
from xverse_runtime.offload.modes import MODES_WITH_PREFETCH, ModeChooser
from xverse_runtime.offload.offloaded_experts import ExpertOffload, Unfinished
from xverse_runtime.offload.policy import ExpertPolicy, LeastRecentlyUsed, ScoreWindow
from xverse_runtime.offload.prefetch import PLACES
from xverse_runtime.offload.scheduler import MissScheduler, Split
from xverse_runtime.offload.token_buffers import TokenBuffers

LAYERS, EXPERTS, SHARED, TOP_K, HIDDEN, WIDTH = 5, 8, 2, 3, 64, 32
MOST_FEW = 4
EXPERT_BYTES = ExpertLayout(HIDDEN, WIDTH, INT4).block_bytes


class StopError(Exception):
    """What a cancelled pass ends with."""


@dataclass
class Model:
    """Layers of experts with their routers; no attention: the tokens go from layer to layer."""

    layers: list[ExpertBlocks]
    routers: list[Tensor]
    kernels: KernelBackend

    def route(self, layer: int, x: Tensor) -> RoutedTokens:
        norm = Norm(torch.ones(HIDDEN), 1e-6)
        return self.kernels.route(x, norm, self.routers[layer], TOP_K, SHARED)


def make_model(
    kernels: KernelBackend | None = None, form: WeightFormat = INT4, seed: int = 0
) -> Model:
    generator = torch.Generator().manual_seed(seed)
    layout = ExpertLayout(HIDDEN, WIDTH, form)
    layers = []
    for _ in range(LAYERS):
        blocks = []
        for _ in range(EXPERTS + SHARED):
            shapes = ((WIDTH, HIDDEN), (WIDTH, HIDDEN), (HIDDEN, WIDTH))
            weights = [torch.randn(shape, generator=generator) * 0.2 for shape in shapes]
            blocks.append(layout.pack(SwigluWeights(*weights)))
        layers.append(ExpertBlocks(torch.stack(blocks), layout, torch.float32))
    routers = [torch.randn(EXPERTS, HIDDEN, generator=generator) for _ in range(LAYERS)]
    if kernels is None:
        kernels = CpuBackend() if native is not None else ReferenceBackend()
    return Model(layers, routers, kernels)


class AtRandom:
    """A scheduler that divides misses without any sense."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self.observed = 0
        self.guesses: list[bool] = []

    def cost(self, side: str, *, shared: bool = False) -> LinearCost:
        return LinearCost(1e-5, 1e10)

    def split(self, misses, **_: object) -> Split:  # type: ignore[no-untyped-def]
        now = self._rng.randint(0, len(misses))
        background = [key for key in misses[now:] if self._rng.random() < 0.7]
        return Split(tuple(misses[now:]), tuple(misses[:now]), tuple(background))

    def observe(self, split: Split, *, cpu_s=None, link_s=None) -> None:  # type: ignore[no-untyped-def]
        assert bool(split.cpu) or cpu_s is None
        assert bool(split.now) == (link_s is not None)
        self.observed += 1

    def seconds(self, cpu: int, now: int, link_busy_s: float = 0.0) -> float:
        return self._rng.choice([0.0, 1.0])

    def observe_background(self, seconds: float) -> None:
        assert seconds > 0

    def prefetches(self, _layer_s: float) -> bool:
        return self._rng.random() < 0.9

    def observe_guess(self, right: bool) -> None:
        self.guesses.append(right)


def make_offload(
    model: Model,
    device: FakeDevice,
    *,
    slots: int,
    staged: int = 3,
    policy: ExpertPolicy | None = None,
    scheduler: object = None,
    pinned_bytes: int = 1 << 40,
    modes: ModeChooser | None = None,
) -> ExpertOffload:
    host = HostExperts(model.layers, EXPERTS)
    policy = policy or ScoreWindow.for_model(LAYERS, TOP_K)
    cache = ExpertCache(
        device,
        host,
        ExpertSlots(LAYERS, EXPERTS, slots, policy),
        staged=staged,
        shared=SHARED,
        dtype=torch.float32,
    )
    cache.load((layer, expert) for expert in range(EXPERTS) for layer in range(LAYERS))
    host.pin(device, pinned_bytes)
    if scheduler is None:
        size = model.layers[0].layout.block_bytes
        scheduler = MissScheduler(size, LinearCost(1e-5, 1e10), LinearCost(1e-5, 1e10))
    rules = Coordinator(
        cache.slots,
        scheduler,  # type: ignore[arg-type]
        is_pinned=lambda key: host.is_pinned(key[0]),
        most_now=staged,
    )
    return ExpertOffload(
        cache,
        rules,
        model.kernels,
        model.kernels,
        top_k=TOP_K,
        most_few=MOST_FEW,
        modes=modes,
    )


def run(model: Model, offload: ExpertOffload, x: Tensor, stop_at: int | None = None) -> Tensor:
    """A pass through all layers; ``stop_at`` cancels it at that look at the flag."""
    looks = 0

    def between() -> None:
        nonlocal looks
        looks += 1
        if looks == stop_at:
            raise StopError

    for layer in range(LAYERS):
        x = offload.runners[layer](model.route(layer, x), x, between)
    return x


Guesses = Callable[[int, Tensor], Tensor]  # of a layer, from what there is one layer earlier


def run_in_steps(
    model: Model, offload: ExpertOffload, x: Tensor, guess: Guesses, stop_at: int | None = None
) -> Tensor:
    """The same for one token, in the order of `PiecewiseStep`: what nothing waits for comes while
    the next layer is on its way, and each layer guesses at the next."""
    before: tuple[int, RoutedTokens, TokenBuffers] | None = None
    unfinished: Unfinished | None = None
    looks = 0

    def look() -> None:
        nonlocal looks
        looks += 1
        if looks == stop_at:
            raise StopError

    for layer in range(LAYERS):
        x = x if before is None else offload.total(x, *before)
        routed = model.route(layer, x)
        guessed = offload.wants_guesses and layer + 1 < LAYERS
        buffers = offload.begin(layer, routed, guess(layer + 1, x) if guessed else None)
        chosen = offload.cache.device.mark()
        look()
        if unfinished is not None:
            assert before is not None
            assert torch.equal(unfinished.logits, before[1].logits)  # also with the next on its way
            offload.finish(unfinished)
        offload.prepare_hits(layer)
        offload.launch_hits(layer, routed, buffers)
        look()
        unfinished = offload.misses(layer, routed, buffers, chosen, guessed=guessed)
        # What is waited for is held up by one block at most.
        under_way = (offload.uploads._ahead, offload.uploads._coming)
        assert sum(one is not None and not one.arrived for one in under_way) <= 1  # type: ignore[attr-defined]
        before = layer, routed, buffers
        look()
    assert before is not None
    x = offload.total(x, *before)
    assert unfinished is not None
    offload.finish(unfinished)
    return x


def guesses_right(model: Model, x: Tensor, share: float, rng: random.Random) -> Guesses:
    """With so many of them what the layers are going to choose; any experts otherwise."""
    chosen = []
    for layer in range(LAYERS):
        routed = model.route(layer, x)
        chosen.append(routed.expert_ids)
        x = after_layer(model, layer, routed, x)

    def guess(layer: int, _x: Tensor) -> Tensor:
        ids = chosen[layer].clone()
        for place in range(TOP_K):
            if rng.random() >= share:
                ids[0, place] = rng.randrange(EXPERTS)
        return ids

    return guess


def after_layer(model: Model, layer: int, routed: RoutedTokens, x: Tensor) -> Tensor:
    """For few tokens, with every expert at hand."""
    out = torch.empty(*routed.expert_ids.shape, HIDDEN)
    model.kernels.expert_parts(routed, model.layers[layer], out)
    return model.kernels.add_parts(x, routed.expert_ids, [], out)


def plainly(model: Model, x: Tensor, staged: int = 3) -> Tensor:
    """What `run` has to give, with every expert at hand."""
    for layer, blocks in enumerate(model.layers):
        routed = model.route(layer, x)
        if x.shape[0] <= MOST_FEW:
            x = after_layer(model, layer, routed, x)
            continue
        for first in range(0, EXPERTS, staged):
            ids = [*range(first, min(first + staged, EXPERTS))]
            ids += range(EXPERTS, EXPERTS + SHARED) if first == 0 else ()
            table = torch.full((EXPERTS + SHARED,), -1, dtype=torch.int32)
            table[ids] = torch.tensor(ids, dtype=torch.int32)
            group = ExpertBlocks(blocks.blocks, blocks.layout, torch.float32, table)
            x = model.kernels.experts(routed, group, x)
    return x


MODEL = make_model()


def fuzz_one(seed: int, *, ahead: bool = False) -> ExpertOffload:
    """One life of an offload: random sizes, policies, delays, pinning, decisions, cancellations;
    ``ahead``: so that much is sent a layer ahead."""
    rng = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    policy = rng.choice([LeastRecentlyUsed, lambda: ScoreWindow(rng.choice([5, 50]))])()
    staged = rng.randint(PLACES if ahead else 1, EXPERTS + 2)
    most_delay, in_place = rng.choice([0, 1, 3, 10, 40]), rng.random() < 0.5
    device = FakeDevice(rng, most_delay=most_delay, reads_in_place=in_place)
    most_slots = LAYERS * EXPERTS // (3 if ahead else 1)
    offload = make_offload(
        MODEL,
        device,
        slots=rng.randint(0, most_slots),
        staged=staged,
        policy=policy,
        scheduler=AtRandom(rng),
        pinned_bytes=1 << 40 if ahead else rng.choice([0, EXPERTS * EXPERT_BYTES, 1 << 40]),
        modes=ModeChooser(MODES_WITH_PREFETCH) if rng.random() < 0.3 else None,
    )
    right = rng.choice([0.0, 0.3, 0.7, 1.0])
    for _ in range(rng.randint(3, 10)):
        tokens = rng.choice([1, 1, 1, 2, MOST_FEW, MOST_FEW + 1, 12, 20])
        x = torch.randn(tokens, HIDDEN, generator=generator)
        stop_at = rng.randint(1, 3 * LAYERS) if rng.random() < 0.2 else None
        if rng.random() < 0.25:  # also after a pass that broke off
            offload.leave(rng.randint(0, LAYERS * EXPERTS))
            assert not offload.are_here
            if rng.random() < 0.3:
                offload.leave(rng.randint(0, offload.slots))
            offload.come_back()
        try:
            if tokens == 1 and rng.random() < 0.8:
                guess = guesses_right(MODEL, x, right, rng)
                got = run_in_steps(MODEL, offload, x, guess, stop_at)
            else:
                got = run(MODEL, offload, x, stop_at)
        except StopError:
            continue
        assert torch.equal(got, plainly(MODEL, x, staged)), f"seed {seed}"
    return offload


@pytest.mark.parametrize(
    "first",
    [0, 250, *(pytest.param(first, marks=pytest.mark.slow) for first in range(500, 2000, 250))],
)
def test_any_cache_any_delay_any_decision_gives_the_same(first: int) -> None:
    for seed in range(first, first + 250):
        fuzz_one(seed)


def test_what_is_sent_ahead_is_used_or_not_and_the_sums_are_the_same() -> None:
    sent = used = 0
    for seed in range(2000, 2300):
        statistics = fuzz_one(seed, ahead=True).statistics
        sent += statistics.prefetched
        used += statistics.prefetched_used
    assert 0.2 * sent < used < sent
    assert sent > 1000


@pytest.mark.parametrize("right", [0.0, 1.0])
def test_guesses_that_are_always_wrong_or_always_right(right: float) -> None:
    """Copies take no time: what is guessed right is a hit, also with no slots at all."""
    rng = random.Random(3)
    scheduler = MissScheduler(EXPERT_BYTES, LinearCost(1e-5, 1e10), LinearCost(1e-5, 1e10))
    offload = make_offload(MODEL, FakeDevice(rng, most_delay=0), slots=0, scheduler=scheduler)
    generator = torch.Generator().manual_seed(3)
    for _ in range(200):
        x = torch.randn(1, HIDDEN, generator=generator)
        real = guesses_right(MODEL, x, 1.0, rng)

        def guess(layer: int, x: Tensor, real: Guesses = real) -> Tensor:
            ids = real(layer, x)
            others = [one for one in range(EXPERTS) if one not in ids[0, :TOP_K].tolist()]
            if not right:
                ids[0, :TOP_K] = torch.tensor(others[:TOP_K])
            return ids

        assert torch.equal(run_in_steps(MODEL, offload, x, guess), plainly(MODEL, x))
    statistics = offload.statistics
    if right:
        assert 0.9 * 200 * (LAYERS - 1) < statistics.prefetched <= 200 * (LAYERS - 1)
        assert statistics.prefetched_used == statistics.hits == statistics.prefetched
    else:  # until it is noticed
        assert 10 < statistics.prefetched < 400
        assert statistics.prefetched_used == statistics.hits == 0
        assert not scheduler.prefetches(1.0)


def everything(model: Model, device: FakeDevice, **how: object) -> tuple[ExpertOffload, Tensor]:
    """An offload that has run a while, and what its tokens should give."""
    offload = make_offload(model, device, **how)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(5)
    for tokens in (1, 12, 1, 1, 3, 20, 1):
        x = torch.randn(tokens, HIDDEN, generator=generator)
        assert torch.equal(run(model, offload, x), plainly(model, x, offload.cache.staged))
    return offload, x


@pytest.mark.parametrize("pinned_layers", [0, 1, 2, 3])
def test_what_cannot_be_pinned_is_computed_by_the_cpu(pinned_layers: int) -> None:
    granted = 0

    def pins(_nbytes: int) -> bool:
        nonlocal granted
        granted += 1
        return granted <= pinned_layers

    device = FakeDevice(pins=pins)
    offload, x = everything(MODEL, device, slots=LAYERS)
    assert offload.cache.host.pinned_layers == pinned_layers
    assert offload.statistics.on_cpu > 0
    generator = torch.Generator().manual_seed(7)
    for _ in range(300):  # a buffer takes its time
        x = torch.randn(1, HIDDEN, generator=generator)
        assert torch.equal(run(MODEL, offload, x), plainly(MODEL, x))
    assert offload.statistics.background_bytes > 0


@pytest.mark.parametrize("tokens", [1, MOST_FEW + 3])
def test_slots_given_back_and_taken_again(tokens: int) -> None:
    """Also with uploads under way, and by the CPU's threads into the buffer."""
    generator = torch.Generator().manual_seed(3)
    for pinned_bytes in (0, 1 << 40):
        device = FakeDevice(most_delay=50)
        offload = make_offload(
            MODEL,
            device,
            slots=12,
            scheduler=AtRandom(random.Random(1)),
            pinned_bytes=pinned_bytes,
        )
        for slots in (12, 5, 5, 1, 0, 3, 20, LAYERS * EXPERTS):
            for _ in range(8):
                x = torch.randn(tokens, HIDDEN, generator=generator)
                assert torch.equal(run(MODEL, offload, x), plainly(MODEL, x))
            offload.leave(slots)
            offload.come_back()
            slots_now = offload.cache.slots
            assert slots_now.slots == offload.slots == slots
            assert len(offload.cache.pool) == slots + LAYERS * SHARED + 2 * 3
            for layer in range(LAYERS):
                for expert, row in enumerate(offload.cache.slot_rows(layer)):
                    if row >= 0:
                        block = offload.cache.host.block((layer, expert))
                        assert torch.equal(offload.cache.pool[row], block)


def test_a_pool_that_does_not_fit_takes_nothing() -> None:
    size = (12 + LAYERS * SHARED + 6) * EXPERT_BYTES
    device = FakeDevice(memory=size + 2**20)
    offload = make_offload(MODEL, device, slots=12)
    device.take(3 * EXPERT_BYTES)
    offload.leave(12)
    device.take(2**20)
    with pytest.raises(torch.OutOfMemoryError):
        offload.come_back()
    device.take(-(2**20))
    assert not offload.are_here
    offload.leave(9)
    offload.come_back()
    x = torch.randn(1, HIDDEN)
    assert torch.equal(run(MODEL, offload, x), plainly(MODEL, x))


def test_a_step_that_hits_everything_copies_no_experts() -> None:
    device = FakeDevice()
    offload, x = everything(MODEL, device, slots=LAYERS * EXPERTS)
    before = device.uploads
    run(MODEL, offload, x)
    assert device.uploads == before
    assert offload.statistics.hit_rate == 1.0
    assert offload.statistics.prompt_bytes == 0


def test_experts_that_are_cached_are_not_fetched_again_for_a_prompt() -> None:
    offload = make_offload(MODEL, FakeDevice(), slots=LAYERS * 5)
    x = torch.randn(20, HIDDEN, generator=torch.Generator().manual_seed(0))
    run(MODEL, offload, x)
    absent = LAYERS * (EXPERTS - 5)
    assert offload.statistics.prompt_bytes == absent * EXPERT_BYTES


def test_a_prompt_leaves_what_its_last_tokens_used() -> None:
    """As far as it comes by while others can leave: the last layer's, with a policy that prefers
    what was used last, are those of the last tokens."""
    offload = make_offload(MODEL, FakeDevice(), slots=LAYERS * 4, policy=LeastRecentlyUsed())
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        x = torch.randn(20, HIDDEN, generator=generator)
        used = []
        for layer in range(LAYERS):
            routed = MODEL.route(layer, x)
            used.append(routed.expert_ids[-1, :TOP_K].tolist())
            x = offload.runners[layer](routed, x, None)
    table = offload.cache.slots.table(LAYERS - 1)
    assert sum(table[expert] >= 0 for expert in used[-1]) >= TOP_K - 1
    assert sum(len(set(one) - set(used[-1])) for one in used) > 0


def test_the_same_tokens_in_one_pass_or_several() -> None:
    """For kernels whose splits are exact."""
    if not MODEL.kernels.exact_splits:
        pytest.skip("plain torch sums matrices of other heights in another order")
    offload = make_offload(MODEL, FakeDevice(), slots=LAYERS * 3)
    x = torch.randn(MOST_FEW, HIDDEN, generator=torch.Generator().manual_seed(0))
    together = run(MODEL, offload, x)
    single = torch.cat([run(MODEL, offload, row) for row in x.split(1)])
    assert torch.equal(together, single)


def test_statistics_count_every_use_once() -> None:
    offload = make_offload(
        MODEL, FakeDevice(), slots=LAYERS * 3, scheduler=AtRandom(random.Random(2))
    )
    tokens = 0
    for count in (1, 3, 1, 1, 4, 1, 1, 1):
        run(MODEL, offload, torch.randn(count, HIDDEN))
        tokens += count
    statistics = offload.statistics
    assert statistics.tokens == tokens
    assert statistics.uses == tokens * LAYERS * TOP_K
    assert min(statistics.hits, statistics.on_cpu, statistics.over_link) > 0
    assert statistics.critical_bytes % EXPERT_BYTES == 0
    assert statistics.layers == 8 * LAYERS
    assert offload.rules.scheduler.observed > 0  # type: ignore[attr-defined]


def test_real_costs_are_learnt_within_a_few_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """The link turns out a hundred times slower than expected: it is given up."""
    ticks = itertools.count()
    monkeypatch.setattr(host_part, "perf_counter", lambda: next(ticks) * 1e-5)
    device = FakeDevice(upload_seconds=lambda nbytes: nbytes / 1e6)
    slow = LinearCost(1e-3, 1e8)
    scheduler = MissScheduler(EXPERT_BYTES, slow, LinearCost(1e-6, 1e12))
    offload = make_offload(MODEL, device, slots=LAYERS, scheduler=scheduler)
    generator = torch.Generator().manual_seed(1)
    for _ in range(12):
        run(MODEL, offload, torch.randn(1, HIDDEN, generator=generator))
    before = offload.statistics.over_link
    assert before > 0
    for _ in range(12):
        run(MODEL, offload, torch.randn(1, HIDDEN, generator=generator))
    # a trial of one number of misses and another
    assert offload.statistics.over_link - before <= 1 + 2


def test_tables_begin_where_kernels_can_read_them() -> None:
    """66 experts a layer, as in the real model: rows of 264 bytes."""
    layout = ExpertLayout(HIDDEN, WIDTH, INT4)
    blocks = torch.zeros(66, layout.block_bytes, dtype=torch.uint8)
    host = HostExperts([ExpertBlocks(blocks, layout, torch.float32)] * 3, 64)
    slots = ExpertSlots(3, 64, 5, LeastRecentlyUsed())
    cache = ExpertCache(FakeDevice(), host, slots, staged=2, shared=2, dtype=torch.float32)
    for layer in range(3):
        cache.update_table(layer)
        table = cache.table(layer)
        assert table.data_ptr() % 16 == 0
        assert table.is_contiguous()
        assert table.tolist() == [-1] * 64 + [5 + 2 * layer, 6 + 2 * layer]


def test_a_place_that_changed_its_row_is_told_anew() -> None:
    """Layers 1 and 4 share a place. What layer 4 was sent stays, and the place has another row:
    when layer 1 is sent the same expert once more, its table must not say the old one."""
    offload = make_offload(MODEL, FakeDevice(), slots=LAYERS, policy=LeastRecentlyUsed())
    cache, rules = offload.cache, offload.rules
    absent = [next(e for e, row in enumerate(cache.slot_rows(n)) if row < 0) for n in range(LAYERS)]
    cache.update_table(1, absent[1])
    before = cache.prefetch_row(1)
    assert cache.table(1)[absent[1]] == before == cache.prefetch_row(4)
    cache.keep((4, absent[4]), before, rules)
    cache.update_table(1, absent[1])
    assert cache.slot_rows(4)[absent[4]] == before
    assert cache.table(1)[absent[1]] == cache.prefetch_row(1) != before
    assert before not in cache.resident_rows(1)


def test_a_table_of_what_came_late_that_did_not_go_out_is_sent_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Broken off where the table is to be emptied: the next layers must not read the old one."""
    only_link = ModeChooser(("link",))
    offload = make_offload(MODEL, FakeDevice(), slots=0, modes=only_link)
    late = offload._late
    x = torch.randn(1, HIDDEN, generator=torch.Generator().manual_seed(0))
    assert torch.equal(run(MODEL, offload, x), plainly(MODEL, x))
    assert (late._table >= 0).any()
    with monkeypatch.context() as broken:
        broken.setattr(late._rows, "send_some", raising(StopError()))
        offload.modes = ModeChooser(("cpu",))
        with pytest.raises(StopError):
            run(MODEL, offload, x)
    assert torch.equal(run(MODEL, offload, x), plainly(MODEL, x))
    assert not (late._table >= 0).any()


def test_no_memory_for_the_buffer_of_what_is_not_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its slot is free again, and the session goes on."""
    device = FakeDevice(pins=lambda _bytes: False)
    offload = make_offload(MODEL, device, slots=LAYERS)
    x = torch.randn(1, HIDDEN, generator=torch.Generator().manual_seed(0))
    offload.begin(0, MODEL.route(0, x))  # has buffers of its own
    with monkeypatch.context() as full:
        full.setattr(device, "host_buffer", raising(RuntimeError("can't allocate memory")))
        with pytest.raises(RuntimeError, match="allocate"):
            run(MODEL, offload, x)
    for _ in range(3):
        assert torch.equal(run(MODEL, offload, x), plainly(MODEL, x))
    offload.uploads.settle()


def raising(error: Exception) -> Callable[..., None]:
    def fail(*_args: object, **_named: object) -> None:
        raise error

    return fail
