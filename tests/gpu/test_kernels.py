"""Kernels at the true shapes against fp64: fresh random inputs, every element written, no race."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from bench.gpu.inputs import (
    DIM,
    DTYPE,
    EXPERTS,
    HEADS,
    HIDDEN,
    SHARED,
    TOP_K,
    VOCAB,
    WIDTH,
    random_rotary,
)
from bench.gpu.inputs import random_routing as routing
from bench.gpu.parity import (
    TOLERANCE,
    attention_in_fp64,
    experts_in_fp64,
    kept_in_fp64,
    linear_in_fp64,
    relative_error,
    routed_rightly,
)
from bench.gpu.random_weights import random_experts, random_packed
from tests.gpu.repeat import poisoned_memory, same_every_time
from tests.kernels.poison import NAN, POISON_INT
from xverse_kernels import reference
from xverse_kernels.kv_rows import Rows, read_rows, to_int8
from xverse_kernels.packing import FORMATS, ExpertBlocks, ExpertLayout
from xverse_kernels.triton.products import experts_by_torch
from xverse_kernels.types import Norm, Parts, Projection, Rotary, RoutedTokens, TokenChoice

FORMS = ["bf16", "int8", "int4"]


@pytest.fixture(autouse=True)
def fresh_inputs() -> None:
    torch.seed()


@pytest.fixture
def backend():
    from xverse_kernels.triton.backend import TritonBackend

    return TritonBackend(torch.device("cuda"))


@pytest.fixture
def poisoned() -> Iterator[None]:
    with poisoned_memory():
        yield


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


@pytest.mark.parametrize("graph", [True, False])
def test_the_hosts_memory_is_read_and_written_anew_every_time(backend, graph: bool) -> None:
    """What it writes just before a launch is what the kernel reads, nothing kept from before, and
    an event behind the kernel is all that it waits for; also where kernels begin early."""
    blocks, routed = random_blocks("int4"), routing(1)
    blocks.table[:] = -1  # all slots are the host's
    x = torch.zeros(1, HIDDEN, device="cuda")
    parts = torch.empty(1, TOP_K + SHARED, HIDDEN, device="cuda")
    rest = torch.zeros(parts.shape).pin_memory()
    told = torch.zeros(1, HIDDEN).pin_memory()
    table = torch.zeros(64, 68, dtype=torch.int32).pin_memory()
    there = torch.zeros(68, dtype=torch.int32, device="cuda")
    back = torch.zeros(68, dtype=torch.int32).pin_memory()

    def step() -> None:
        backend.expert_parts(routed, blocks, parts)
        total = backend.add_parts(x, routed.expert_ids, [Parts(parts, blocks.table)], rest)
        backend.copy_small([(total, told), (there, back)])

    step()  # compiles
    torch.cuda.synchronize()
    captured = torch.cuda.CUDAGraph()
    if graph:
        with torch.cuda.graph(captured):
            step()
    done = torch.cuda.Event()
    for turn in range(1000):
        rest.fill_(turn)
        table[turn % 64].fill_(turn)
        backend.copy_small([(table[turn % 64], there)])
        captured.replay() if graph else step()
        done.record()
        while not done.query():
            pass
        assert bool((told == turn * (TOP_K + SHARED)).all())
        assert bool((back == turn).all())


def test_memory_that_is_registered_later(backend) -> None:
    """Its address for kernels can be another than the host's."""
    from xverse_runtime.link import pin_pages, unpin_pages

    device = torch.device("cuda", torch.cuda.current_device())
    memory = torch.randint(-(2**31), 2**31 - 1, (2, 16, 1024), dtype=torch.int32)
    pinned = [memory]
    if not pin_pages(memory, device):
        pytest.skip("the system pins no memory that exists")
    source, target = memory
    there = torch.zeros(1024, dtype=torch.int32, device=device)
    for row in range(16):
        backend.copy_small([(source[row], there)])
        backend.copy_small([(there, target[row])])
    torch.cuda.synchronize()
    unpin_pages(pinned, device)
    assert torch.equal(target, source)


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
    expected = linear_in_fp64(x, matrix, norm, residual)
    assert relative_error(found, expected) < TOLERANCE


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("tokens", [1, 2, 5, 16, 17, 64])
def test_router(backend, tokens: int) -> None:
    """In one launch up to 16 tokens, in which the last program to come chooses."""
    x = torch.randn(tokens, HIDDEN, device="cuda", dtype=DTYPE)
    norm = Norm(torch.rand(HIDDEN, device="cuda", dtype=DTYPE) + 0.5, 1e-6)
    # logits of deviation 1: with larger ones, most probabilities would be 0 and their order free
    router = torch.randn(EXPERTS, HIDDEN, device="cuda") * HIDDEN**-0.5
    routed = same_every_time(lambda: backend.route(x, norm, router, TOP_K, SHARED))
    routed_rightly(x, norm, router, TOP_K, SHARED)(routed)


def random_cache(sequences: int, capacity: int, past: int, cache: torch.dtype) -> list[Rows]:
    """Keys and values of a past; what comes after it is NaN."""
    rows: list[Rows] = []
    for _ in range(2):
        dense = torch.randn(sequences, HEADS, capacity, DIM, device="cuda", dtype=DTYPE)
        dense[:, :, past:] = NAN
        rows.append(to_int8(dense) if cache == torch.int8 else dense)
    return rows


def check_newest(
    keys: Rows, values: Rows, qkv: Tensor, rotary: Rotary, sequence: int, past: int
) -> None:
    """The rows that a launch had to write are in the cache."""
    new = (sequence, slice(None), slice(past, past + len(qkv)))
    for rows, expected in zip((keys, values), kept_in_fp64(qkv, rotary, keys, past), strict=True):
        assert relative_error(read_rows(rows, new, torch.float64), expected) < TOLERANCE


CACHES = pytest.mark.parametrize("cache", [DTYPE, torch.int8], ids=str)


@pytest.mark.usefixtures("poisoned")
@CACHES
@pytest.mark.parametrize("past", [0, 1, 100, 257, 1023, 5000, 8190])
def test_decode_attention(backend, past: int, cache: torch.dtype) -> None:
    capacity, order, pasts = 8192, [1, 0], [past, past // 2]
    keys, values = random_cache(2, capacity, past, cache)
    rotary = random_rotary(capacity)
    qkv = torch.randn(2, 3 * HEADS * DIM, device="cuda", dtype=DTYPE)
    each = list(zip(qkv.split(1), order, pasts, strict=True))
    expected = torch.cat(
        [attention_in_fp64(row, rotary, keys, values, *place) for row, *place in each]
    )
    sequences = torch.tensor(order, device="cuda", dtype=torch.int32)
    positions = torch.tensor(pasts, device="cuda", dtype=torch.int32)
    found = same_every_time(
        lambda: backend.attend_each(qkv, rotary, keys, values, sequences, positions, past)
    )
    assert relative_error(found, expected) < TOLERANCE
    for row, sequence, position in each:
        check_newest(keys, values, row, rotary, sequence, position)


def test_a_batch_of_more_pairs_than_there_were_counters(backend) -> None:
    """One for each token and head, and there were 65536."""
    sequences, heads, past = 2200, 32, 300
    assert sequences * heads > 1 << 16
    keys, values = (
        torch.randn(sequences, 1, past + 1, DIM, device="cuda", dtype=DTYPE) for _ in range(2)
    )
    rotary = random_rotary(past + 1)
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
    rotary = random_rotary(capacity)
    qkv = torch.randn(tokens, 3 * HEADS * DIM, device="cuda", dtype=DTYPE)
    expected = attention_in_fp64(qkv, rotary, keys, values, sequence, past)
    found = same_every_time(lambda: backend.attend_span(qkv, rotary, keys, values, sequence, past))
    assert relative_error(found, expected) < TOLERANCE
    check_newest(keys, values, qkv, rotary, sequence, past)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_one_seed_draws_one_token(backend, temperature: float) -> None:
    """For several sequences at once, each with a history; where tokens are put is written to."""
    sequences, seeds = 4, [0, 1, 2**40 + 3, 2**62]
    logits = torch.randn(sequences, VOCAB, device="cuda") * 2
    likeliest = logits.topk(64 + 4).indices  # four at most are penalised out of the first 64
    histories = likeliest[:, :3].tolist()
    sampler = backend.sampler(sequences, VOCAB)

    def draw() -> Tensor:
        for row, (history, seed) in enumerate(zip(histories, seeds, strict=True)):
            sampler.begin(row, history, TokenChoice(temperature, 64, 0.98, 0.0, 1.1, seed))
        sampler.tokens.fill_(POISON_INT)
        first = sampler(logits).clone()
        return torch.stack((first, sampler(logits)))

    tokens = same_every_time(draw)
    assert bool((tokens[..., None] == likeliest).any(-1).all())


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
