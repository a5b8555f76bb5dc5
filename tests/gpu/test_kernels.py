"""Kernels at the true shapes against fp64: fresh random inputs, every element written, no race."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from bench.gpu.inputs import DIM, DTYPE, EXPERTS, HEADS, HIDDEN, SHARED, TOP_K, VOCAB, WIDTH
from bench.gpu.inputs import random_routing as routing
from bench.gpu.parity import TOLERANCE, experts_in_fp64, relative_error
from bench.gpu.random_weights import random_experts, random_packed
from xverse_kernels import reference
from xverse_kernels.kv_rows import Int8Rows, Rows, read_rows, to_int8
from xverse_kernels.packing import FORMATS, ExpertBlocks, ExpertLayout, PackedMatrix
from xverse_kernels.reference_backend import ReferenceBackend
from xverse_kernels.triton.products import experts_by_torch
from xverse_kernels.types import Norm, Parts, Projection, Rotary, RoutedTokens, TokenChoice

FORMS = ["bf16", "int8", "int4"]
ROUNDS = 20


@pytest.fixture(autouse=True)
def fresh_inputs() -> None:
    torch.seed()


@pytest.fixture
def backend():
    from xverse_kernels.triton.backend import TritonBackend

    return TritonBackend(torch.device("cuda"))


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """New memory is full of NaN, so whatever a kernel leaves unwritten shows."""
    real = torch.empty

    def empty(*args: object, **kwargs: object) -> Tensor:
        tensor: Tensor = real(*args, **kwargs)  # type: ignore[call-overload]
        if tensor.is_floating_point():
            tensor.fill_(float("nan"))
        return tensor

    monkeypatch.setattr(torch, "empty", empty)
    monkeypatch.setattr(
        torch, "empty_like", lambda x: empty(x.shape, dtype=x.dtype, device=x.device)
    )


def same_every_time(compute: Callable[[], Tensor]) -> Tensor:
    first = compute()
    for _ in range(ROUNDS):
        assert torch.equal(compute(), first)
    return first


def random_blocks(form: str) -> ExpertBlocks:
    layout = ExpertLayout(HIDDEN, WIDTH, FORMATS[form])
    return random_experts(EXPERTS + SHARED, layout, DTYPE, "cuda")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("tokens", [1, 2, 3, 8, 17, 100])
@pytest.mark.usefixtures("poisoned")
def test_experts(backend, form: str, tokens: int) -> None:
    blocks, routed = random_blocks(form), routing(tokens, among=8)
    zero = torch.zeros_like(routed.normed)
    found = same_every_time(lambda: backend.experts(routed, blocks, zero))
    assert relative_error(found, experts_in_fp64(blocks, routed)) < TOLERANCE


@pytest.mark.parametrize("tokens", [1, 40])
@pytest.mark.usefixtures("poisoned")
def test_an_absent_expert_adds_nothing(backend, tokens: int) -> None:
    blocks, routed = random_blocks("int4"), routing(tokens, among=8)
    absent = int(routed.expert_ids[0, 0])
    blocks.table[absent] = -1
    weights = routed.weights.masked_fill(routed.expert_ids == absent, 0)
    blocks.blocks[absent] = 0xFF  # not a number, were it read
    zero = torch.zeros_like(routed.normed)
    found = backend.experts(routed, blocks, zero)
    assert bool(torch.isfinite(found).all())
    blocks.blocks[absent] = 0
    expected = experts_in_fp64(blocks, routed._replace(weights=weights))
    assert relative_error(found, expected) < TOLERANCE


@pytest.mark.parametrize("form", ["fp16", *FORMS])
@pytest.mark.parametrize("tokens", [3, 100])
@pytest.mark.usefixtures("poisoned")
def test_experts_by_torch(form: str, tokens: int) -> None:
    """As on compute capability 7.5, in fp16; the host waits once, absent experts add nothing."""
    layout = ExpertLayout(HIDDEN, WIDTH, FORMATS[form])
    blocks = random_experts(EXPERTS + SHARED, layout, torch.float16, "cuda")
    routed = routing(tokens, among=8)
    routed = routed._replace(normed=routed.normed.half(), weights=routed.weights.half())
    zero = torch.zeros(tokens, HIDDEN, device="cuda")
    found = same_every_time(lambda: experts_by_torch(routed, blocks, zero))
    assert relative_error(found, experts_in_fp64(blocks, routed)) < TOLERANCE
    blocks.table[:] = -1
    assert not bool(experts_by_torch(routed, blocks, zero).any())
    with warnings.catch_warnings(record=True) as waits:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            experts_by_torch(routed, blocks, zero)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert len([one for one in waits if "synchroniz" in str(one.message)]) == 1


def test_many_tokens_by_torch_in_a_graph() -> None:
    """A step of many sequences is captured: there pairs read their experts one by one."""
    from xverse_kernels.triton.backend import TritonBackend

    kernels, blocks = TritonBackend(torch.device("cuda"), by_torch=True), random_blocks("int8")
    routed, zero = routing(40, among=8), torch.zeros(40, HIDDEN, device="cuda")
    expected = kernels.experts(routed, blocks, zero)
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    h = kernels.experts(RoutedTokens(*(one[:1] for one in routed)), blocks, zero[:1])  # compiles
    assert h.shape == (1, HIDDEN)
    with torch.cuda.graph(graph, stream=stream):
        captured = kernels.experts(routed, blocks, zero)
    graph.replay()
    torch.cuda.synchronize()
    assert relative_error(captured, expected.double().cpu()) < 2 * TOLERANCE


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("tokens", [1, 3, 20])
@pytest.mark.usefixtures("poisoned")
def test_shares_of_slots(backend, form: str, tokens: int) -> None:
    """Right, zero without a block, and the same whatever else is computed."""
    blocks, routed = random_blocks(form), routing(tokens, among=8)
    shape = (tokens, TOP_K + SHARED, HIDDEN)

    def parts(present: Tensor) -> Tensor:
        table = torch.where(present, blocks.table, -1)
        out = torch.empty(shape, dtype=torch.float32, device="cuda")
        some = ExpertBlocks(blocks.blocks, blocks.layout, DTYPE, table)
        backend.expert_parts(routed, some, out)
        return out

    present = torch.rand(EXPERTS + SHARED, device="cuda") < 0.5
    everything = torch.ones_like(present)
    together = same_every_time(lambda: parts(everything))
    mine, its = parts(present), parts(~present)
    here = present[routed.expert_ids.long()]
    assert not bool(mine[~here].any())
    assert not bool(its[here].any())
    assert torch.equal(mine + its, together)
    x = torch.randn(tokens, HIDDEN, device="cuda", dtype=DTYPE)
    ids, table = routed.expert_ids, torch.where(present, blocks.table, -1)
    other = torch.where(present, -1, blocks.table)
    here = [Parts(mine, table), Parts(its, other)]
    nowhere = torch.full_like(together, float("nan"))
    total = same_every_time(lambda: backend.add_parts(x, ids, here, nowhere))
    assert torch.equal(total, backend.add_parts(x, ids, here[::-1], nowhere))
    assert torch.equal(total, backend.add_parts(x, ids, here[:1], its))
    on_host = its.cpu().pin_memory()  # read where it lies
    assert torch.equal(total, backend.add_parts(x, ids, here[:1], on_host))
    assert torch.equal(total, reference.add_parts(x, ids, [], together))
    zero = torch.zeros(tokens, HIDDEN, device="cuda")
    found = backend.add_parts(zero, ids, [], together)
    assert relative_error(found, experts_in_fp64(blocks, routed)) < TOLERANCE


def test_shares_of_slots_in_a_graph(backend) -> None:
    """Buffers that stay where they are: another table and input, the same graph. What the host
    computes is read where it lies, and what it is told is written there."""
    blocks, routed, other = random_blocks("int4"), routing(1), routing(1)
    out = torch.zeros(1, TOP_K + SHARED, HIDDEN, device="cuda")
    x = torch.randn(1, HIDDEN, device="cuda", dtype=DTYPE)
    backend.expert_parts(routed, blocks, out)  # compiles
    host = torch.zeros(out.shape).pin_memory()
    ids = torch.zeros(routed.expert_ids.shape, dtype=torch.int32).pin_memory()
    normed = torch.zeros(routed.normed.shape).pin_memory()
    told = [(routed.expert_ids, ids), (routed.normed, normed)]
    backend.add_parts(x, routed.expert_ids, [Parts(out, blocks.table)], host)
    backend.copy_small(told)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        backend.copy_small(told)
        backend.expert_parts(routed, blocks, out)
        total = backend.add_parts(x, routed.expert_ids, [Parts(out, blocks.table)], host)
    for part, new in zip(routed, other, strict=True):
        part.copy_(new)
    blocks.table[routed.expert_ids[0, :2].long()] = -1
    host[0, :2] = torch.randn(2, HIDDEN)
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(ids, other.expert_ids.cpu().int())
    assert torch.equal(normed, other.normed.float().cpu())
    expected = torch.empty_like(out)
    backend.expert_parts(other, blocks, expected)
    assert torch.equal(out, expected)
    here = [Parts(expected, blocks.table)]
    assert torch.equal(total, reference.add_parts(x, other.expert_ids, here, host.cuda()))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("tokens", [2, 100])
@pytest.mark.usefixtures("poisoned")
def test_groups_of_experts_one_after_the_other(backend, form: str, tokens: int) -> None:
    """An fp32 residual is handed from one group of a layer's experts to the next."""
    blocks, routed = random_blocks(form), routing(tokens, among=16)
    total = torch.zeros(tokens, HIDDEN, device="cuda")
    for group in torch.arange(EXPERTS + SHARED, device="cuda").chunk(3):
        table = torch.full_like(blocks.table, -1)
        table[group] = torch.arange(len(group), device="cuda", dtype=torch.int32)
        some = ExpertBlocks(blocks.blocks[group].clone(), blocks.layout, DTYPE, table)
        total = backend.experts(routed, some, total)
        assert total.dtype == torch.float32
    assert relative_error(total, experts_in_fp64(blocks, routed)) < TOLERANCE


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("rows", [3 * HIDDEN, HIDDEN, VOCAB])
@pytest.mark.parametrize("tokens", [1, 3, 33])
@pytest.mark.usefixtures("poisoned")
def test_linear(backend, form: str, rows: int, tokens: int) -> None:
    matrix = random_packed(rows, HIDDEN, FORMATS[form], "cuda")
    x = torch.randn(tokens, HIDDEN, device="cuda", dtype=DTYPE)
    norm = Norm(torch.rand(HIDDEN, device="cuda", dtype=DTYPE) + 0.5, 1e-6)
    residual = torch.randn(tokens, rows, device="cuda", dtype=DTYPE)
    found = same_every_time(
        lambda: backend.linear(x, [Projection(matrix)], norm=norm, residual=residual)
    )
    if isinstance(matrix, PackedMatrix):
        packed = PackedMatrix(matrix.data.cpu(), rows, HIDDEN, matrix.form)
        dense = packed.to_dense(torch.float32).double()
    else:
        dense = matrix.cpu().double()
    wide = x.cpu().double()
    normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6) * norm.weight.cpu()
    expected = normed @ dense.T + residual.cpu().double()
    assert relative_error(found, expected) < TOLERANCE


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("tokens", [1, 5, 64])
def test_router(backend, tokens: int) -> None:
    x = torch.randn(tokens, HIDDEN, device="cuda", dtype=DTYPE)
    norm = Norm(torch.rand(HIDDEN, device="cuda", dtype=DTYPE) + 0.5, 1e-6)
    # logits of deviation 1: with larger ones, most probabilities would be 0 and their order free
    router = torch.randn(EXPERTS, HIDDEN, device="cuda") * HIDDEN**-0.5
    routed = backend.route(x, norm, router, TOP_K, SHARED)
    logits = routed.normed.cpu().double() @ router.cpu().double().T
    assert relative_error(routed.logits, logits) < 1e-5
    expected = ReferenceBackend().route(x, norm, router, TOP_K, SHARED)
    assert relative_error(routed.normed, expected.normed) < TOLERANCE
    chosen = reference.route(routed.normed, router, TOP_K)
    # two logits that differ by less than rounding may change places
    same = (routed.expert_ids[:, :TOP_K] == chosen.expert_ids).float().mean()
    assert same > 0.98
    assert relative_error(routed.weights[:, :TOP_K], chosen.weights) < TOLERANCE
    assert routed.expert_ids[:, TOP_K:].tolist() == [[EXPERTS, EXPERTS + 1]] * tokens


def random_cache(sequences: int, capacity: int, past: int, cache: torch.dtype) -> list[Rows]:
    """Keys and values of a past; what comes after it is NaN."""
    rows: list[Rows] = []
    for _ in range(2):
        dense = torch.randn(sequences, HEADS, capacity, DIM, device="cuda", dtype=DTYPE)
        dense[:, :, past:] = float("nan")
        rows.append(to_int8(dense) if cache == torch.int8 else dense)
    return rows


def wide_copy(rows: Rows) -> Rows:
    """For the reference in fp32, which rounds as the cache does."""
    if isinstance(rows, Int8Rows):
        return Int8Rows(*(one.clone() for one in rows))
    return rows.float()


CACHES = pytest.mark.parametrize("cache", [DTYPE, torch.int8], ids=str)


@pytest.mark.usefixtures("poisoned")
@CACHES
@pytest.mark.parametrize("past", [0, 1, 100, 257, 1023, 5000, 8190])
def test_decode_attention(backend, past: int, cache: torch.dtype) -> None:
    capacity, tokens = 8192, 2
    keys, values = random_cache(tokens, capacity, past, cache)
    angles = torch.rand(capacity, DIM // 2, device="cuda") * 6
    angles = torch.cat((angles, angles), dim=1)
    rotary = Rotary(angles.cos(), angles.sin())
    qkv = torch.randn(tokens, 3 * HEADS * DIM, device="cuda", dtype=DTYPE)
    sequences = torch.tensor([1, 0], device="cuda", dtype=torch.int32)
    positions = torch.tensor([past, past // 2], device="cuda", dtype=torch.int32)
    expected_cache = wide_copy(keys), wide_copy(values)
    found = same_every_time(
        lambda: backend.attend_each(qkv, rotary, keys, values, sequences, positions, past)
    )
    expected = ReferenceBackend().attend_each(
        qkv.float(), rotary, *expected_cache, sequences, positions, past
    )
    assert relative_error(found, expected) < TOLERANCE
    newest = read_rows(keys, (1, slice(None), past), torch.float32)
    assert bool(torch.isfinite(newest).all())


def test_a_batch_of_more_pairs_than_there_were_counters(backend) -> None:
    """One for each token and head, and there were 65536."""
    sequences, heads, past = 2200, 32, 300
    assert sequences * heads > 1 << 16
    keys, values = (
        torch.randn(sequences, 1, past + 1, DIM, device="cuda", dtype=DTYPE) for _ in range(2)
    )
    angles = torch.rand(past + 1, DIM // 2, device="cuda") * 6
    angles = torch.cat((angles, angles), dim=1)
    rotary = Rotary(angles.cos(), angles.sin())
    qkv = torch.randn(sequences, (heads + 2) * DIM, device="cuda", dtype=DTYPE)
    each = torch.arange(sequences, device="cuda", dtype=torch.int32)
    positions = torch.full_like(each, past)
    found = backend.attend_each(qkv, rotary, keys, values, each, positions, past)
    for place in (0, sequences // 2, sequences - 1):
        alone = backend.attend_each(
            qkv[place : place + 1].clone(),
            rotary,
            keys[place : place + 1].clone(),
            values[place : place + 1].clone(),
            each[:1],
            positions[:1],
            past,
        )
        assert torch.equal(found[place], alone[0])


@pytest.mark.usefixtures("poisoned")
@CACHES
@pytest.mark.parametrize(("tokens", "past"), [(1, 0), (7, 0), (512, 0), (100, 1000), (1, 33)])
def test_prefill_attention(backend, tokens: int, past: int, cache: torch.dtype) -> None:
    capacity, sequence = 2048, 1
    keys, values = random_cache(2, capacity, past, cache)
    angles = torch.rand(capacity, DIM // 2, device="cuda") * 6
    angles = torch.cat((angles, angles), dim=1)
    rotary = Rotary(angles.cos(), angles.sin())
    qkv = torch.randn(tokens, 3 * HEADS * DIM, device="cuda", dtype=DTYPE)
    wide = wide_copy(keys), wide_copy(values)
    found = backend.attend_span(qkv, rotary, keys, values, sequence, past)
    expected = ReferenceBackend().attend_span(qkv.float(), rotary, *wide, sequence, past)
    assert relative_error(found, expected) < TOLERANCE
    seen = (sequence, slice(None), slice(past + tokens))
    kept, its = (read_rows(one, seen, torch.float32) for one in (keys, wide[0]))
    assert relative_error(kept, its) < TOLERANCE


def test_sampling_follows_the_distribution(backend) -> None:
    from xverse_runtime.sampling import token_probabilities
    from xverse_runtime.types import SamplingParams

    logits = torch.randn(1, VOCAB, device="cuda") * 3
    history = logits[0].topk(3).indices[:2].tolist()
    for top_k, top_p, min_p in ((30, 0.85, 0.0), (5, 1.0, 0.0), (64, 0.95, 0.05), (1, 0.5, 0.0)):
        params = SamplingParams(
            temperature=0.8, top_k=top_k, top_p=top_p, min_p=min_p, repetition_penalty=1.1
        )
        expected = token_probabilities(logits[0].cpu(), torch.tensor(history), params)
        sampler = backend.sampler(1, VOCAB)
        draws = []
        for seed in range(2000):
            sampler.begin(0, history, TokenChoice(0.8, top_k, top_p, min_p, 1.1, seed))
            draws.append(sampler(logits).clone())
        counts = torch.bincount(torch.cat(draws).cpu(), minlength=VOCAB).double()
        kept = expected > 0
        assert counts[~kept].sum() == 0
        wanted = 2000 * expected[kept].double()
        excess = ((counts[kept] - wanted) ** 2 / wanted).sum() / kept.sum()
        assert excess < 3
    greedy = backend.sampler(1, VOCAB)
    greedy.begin(0, [], TokenChoice(0.0, 0, 1.0, 0.0, 1.0, 0))
    assert int(greedy(logits)) == int(logits.argmax())
    logits[0, 77] = float("nan")
    assert int(greedy(logits)) == -1
