"""The C kernels against the oracle on dequantised weights, with every instruction set."""

from __future__ import annotations

import random
from functools import cache

import pytest
import torch
from torch import Tensor

from tests.kernels.cpu.support import (
    FORMS,
    LIMITS,
    ROUNDED_LIMIT,
    attention_case,
    exact_linear,
    exact_sum,
    expert_blocks,
    five_experts,
    guarded,
    matrix,
    name_of,
    norm_of,
    randn,
    relative_error,
    rounded,
    rounded_sum,
    route_randomly,
)
from xverse_kernels import reference
from xverse_kernels.cpu.backend import CpuBackend
from xverse_kernels.packing import BF16, INT4, INT8, PackedMatrix, WeightFormat, pack_matrix
from xverse_kernels.reference_backend import ReferenceBackend
from xverse_kernels.types import Norm, Projection, Rotary, RoutedTokens

PLAIN = ReferenceBackend()
FULL = 1e-5  # fp32 sums in another order

forms = pytest.mark.parametrize("form", FORMS, ids=name_of)


@cache
def expected_sums(
    form: WeightFormat, hidden: int, width: int, tokens: int
) -> tuple[RoutedTokens, Tensor, Tensor]:
    """Tokens, and what `rounded_sum` and `exact_sum` give for them: once for all instructions."""
    experts, routed = five_experts(hidden, width, form), route_randomly(tokens, hidden, 5, 3)
    return routed, rounded_sum(routed, experts), exact_sum(routed, experts)


@forms
@pytest.mark.parametrize(("hidden", "width"), [(96, 160), (160, 96), (256, 1760), (32, 32)])
@pytest.mark.parametrize("tokens", [1, 2, 7, 40])
def test_experts(
    kernels: CpuBackend, form: WeightFormat, hidden: int, width: int, tokens: int
) -> None:
    routed, near, exact = expected_sums(form, hidden, width, tokens)
    experts = five_experts(hidden, width, form)
    actual = kernels.experts(routed, experts, torch.zeros(tokens, hidden))
    assert relative_error(actual, near) < ROUNDED_LIMIT
    if hidden > 32 and tokens > 1:  # a single group, or token, is not the typical one
        assert relative_error(actual, exact) < LIMITS[form]


@forms
def test_the_residual_is_added_last(kernels: CpuBackend, form: WeightFormat) -> None:
    experts, routed = expert_blocks(4, 64, 96, form), route_randomly(6, 64, 4, 2)
    residual = guarded(randn(6, 64, seed=8))
    alone = kernels.experts(routed, experts, torch.zeros(6, 64))
    assert torch.equal(kernels.experts(routed, experts, residual), alone + residual)


def test_inputs_can_reveal_a_wrong_order(fastest: CpuBackend) -> None:
    """Experts, groups and rows differ enough for a swap to be seen."""
    experts, routed = expert_blocks(4, 64, 96, INT8), route_randomly(3, 64, 4, 2)
    right = fastest.experts(routed, experts, torch.zeros(3, 64))
    for swapped in (
        routed._replace(expert_ids=routed.expert_ids.flip(1)),
        routed._replace(weights=routed.weights.flip(1)),
        routed._replace(normed=routed.normed.roll(32, 1)),
        routed._replace(normed=routed.normed.flip(0)),
    ):
        wrong = fastest.experts(swapped, experts, torch.zeros(3, 64))
        assert relative_error(wrong, right) > 0.1


@forms
@pytest.mark.parametrize("expert", [0, 3, 5])
def test_one_expert_has_all_tokens(kernels: CpuBackend, form: WeightFormat, expert: int) -> None:
    experts, routed = expert_blocks(6, 96, 64, form), route_randomly(33, 96, 6, 1)
    routed = routed._replace(expert_ids=torch.full((33, 1), expert))
    actual = kernels.experts(routed, experts, torch.zeros(33, 96))
    assert relative_error(actual, rounded_sum(routed, experts)) < ROUNDED_LIMIT


def test_every_token_has_all_experts(kernels: CpuBackend) -> None:
    experts, routed = expert_blocks(5, 64, 32, INT4), route_randomly(4, 64, 5, 5)
    actual = kernels.experts(routed, experts, torch.zeros(4, 64))
    assert relative_error(actual, rounded_sum(routed, experts)) < ROUNDED_LIMIT


@forms
def test_experts_lie_where_the_table_says(kernels: CpuBackend, form: WeightFormat) -> None:
    """Blocks that are not needed are NaN: they are not looked at."""
    experts = expert_blocks(4, 64, 96, form, table=[5, -1, 0, 2])
    routed = route_randomly(7, 64, 3, 2)
    ids = torch.tensor([0, 2, 3])[routed.expert_ids]
    routed = routed._replace(expert_ids=ids)
    actual = kernels.experts(routed, experts, torch.zeros(7, 64))
    assert relative_error(actual, rounded_sum(routed, experts)) < ROUNDED_LIMIT


@pytest.mark.parametrize("wrong", [4, -1, 2**40])
def test_an_id_that_is_no_experts_is_refused(kernels: CpuBackend, wrong: int) -> None:
    experts = expert_blocks(4, 64, 96, INT4, table=[5, -1, 0, 2])
    routed = route_randomly(3, 64, 3, 2)
    ids = torch.tensor([[0, 2], [3, wrong], [2, 0]])
    with pytest.raises(LookupError, match="no block here"):
        kernels.experts(routed._replace(expert_ids=ids), experts, torch.zeros(3, 64))
    good = routed._replace(expert_ids=ids.clamp(2, 3))
    assert kernels.experts(good, experts, torch.zeros(3, 64)).isfinite().all()


@forms
@pytest.mark.parametrize("tokens", [1, 5, 20])
def test_mlp(kernels: CpuBackend, form: WeightFormat, tokens: int) -> None:
    experts, norm = expert_blocks(1, 96, 352, form), norm_of(96)
    x = guarded(randn(tokens, 96, seed=4))
    actual = kernels.mlp(x, norm, experts, x)
    normed = reference.rms_norm(x, *norm)
    one = RoutedTokens(
        normed, torch.ones(tokens, 1), torch.zeros(tokens, 1, dtype=torch.int64), torch.empty(0)
    )
    assert relative_error(actual - x, rounded_sum(one, experts)) < ROUNDED_LIMIT


@forms
@pytest.mark.parametrize("rows", [16, 7, 33, 100, 320])
@pytest.mark.parametrize("columns", [64, 96, 32, 1760])
@pytest.mark.parametrize("tokens", [1, 8])
def test_linear(
    kernels: CpuBackend, form: WeightFormat, rows: int, columns: int, tokens: int
) -> None:
    layer = [Projection(matrix(rows, columns, form))]
    x = guarded(randn(tokens, columns, seed=2))
    actual = kernels.linear(x, layer)
    assert actual.shape == (tokens, rows)
    assert relative_error(actual, exact_linear(rounded(x, form), layer)) < FULL
    if tokens * rows > 100:
        assert relative_error(actual, exact_linear(x, layer)) < LIMITS[form]


@pytest.mark.parametrize("columns", [16, 48, 80])
def test_bf16_needs_no_groups_of_32(kernels: CpuBackend, columns: int) -> None:
    layer, x = [Projection(matrix(37, columns, BF16))], randn(6, columns)
    assert relative_error(kernels.linear(x, layer), exact_linear(x, layer)) < FULL


def test_bf16_tensors_are_read_as_they_are(kernels: CpuBackend) -> None:
    weight = randn(50, 80, seed=3).bfloat16()
    x = randn(7, 80)
    actual = kernels.linear(x, [Projection(weight)])
    assert torch.equal(actual, kernels.linear(x, [Projection(packed(weight, BF16))]))
    assert relative_error(actual, x.double() @ weight.double().T) < FULL


def packed(weight: Tensor, form: WeightFormat) -> PackedMatrix:
    return PackedMatrix(pack_matrix(weight, form), *weight.shape, form)


@pytest.mark.parametrize("others", [INT8, INT4, BF16], ids=name_of)
@pytest.mark.parametrize("tokens", [1, 6, 21])
@pytest.mark.parametrize("with_norm", [False, True])
@pytest.mark.parametrize("with_residual", [False, True])
def test_projections_side_by_side(
    kernels: CpuBackend, others: WeightFormat, tokens: int, with_norm: bool, with_residual: bool
) -> None:
    layers = [
        Projection(matrix(48, 96, others, seed=1), guarded(randn(48, seed=2))),
        Projection(matrix(17, 96, INT8, seed=3)),
        Projection(matrix(30, 96, others, seed=4), guarded(randn(30, seed=5))),
        Projection(matrix(1, 96, INT4, seed=6)),
    ]
    x, residual = guarded(randn(tokens, 96)), guarded(randn(tokens, 96, seed=9))
    norm = norm_of(96) if with_norm else None
    options = {"residual": residual} if with_residual else {}
    actual = kernels.linear(x, layers, norm=norm, **options)
    alone = torch.cat([kernels.linear(x, [layer], norm=norm) for layer in layers], dim=1)
    assert torch.equal(actual, alone + residual if with_residual else alone)
    assert relative_error(alone, exact_linear(x, layers, norm)) < LIMITS[INT4]


def test_more_projections_than_a_call_takes(kernels: CpuBackend) -> None:
    layers = [Projection(matrix(16, 64, INT8, seed=seed)) for seed in range(5)]
    x = randn(3, 64)
    assert relative_error(kernels.linear(x, layers), exact_linear(x, layers)) < LIMITS[INT8]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=name_of)
def test_linear_in_another_dtype(kernels: CpuBackend, dtype: torch.dtype) -> None:
    layer, x = [Projection(matrix(40, 64, INT8))], randn(3, 64)
    actual = kernels.linear(x, layer, out_dtype=dtype)
    assert actual.dtype == dtype
    assert torch.equal(actual, kernels.linear(x, layer).to(dtype))


@pytest.mark.parametrize("hidden", [64, 96, 100, 2560])
@pytest.mark.parametrize("tokens", [1, 9])
def test_route(kernels: CpuBackend, hidden: int, tokens: int) -> None:
    x, norm = guarded(randn(tokens, hidden, seed=5) * 3), norm_of(hidden)
    router = guarded(randn(16, hidden, seed=6) / hidden**0.5)
    actual = kernels.route(x, norm, router, 6, 2)
    expected = PLAIN.route(x.double(), Norm(norm.weight.double(), norm.eps), router, 6, 2)
    assert torch.equal(actual.expert_ids, expected.expert_ids)
    assert relative_error(actual.normed, expected.normed) < FULL
    assert relative_error(actual.logits, expected.logits) < FULL
    assert relative_error(actual.weights, expected.weights) < FULL


def test_route_takes_the_first_of_equals(kernels: CpuBackend) -> None:
    router = randn(1, 64).expand(8, 64).contiguous()
    routed = kernels.route(randn(3, 64, seed=1), norm_of(64), router, 3, 1)
    assert routed.expert_ids.tolist() == [[0, 1, 2, 8]] * 3
    assert torch.allclose(routed.weights[:, :3], torch.tensor(1 / 3))


def test_route_with_logits_far_apart(kernels: CpuBackend) -> None:
    router = torch.zeros(4, 32)
    router[2], router[1] = 100.0, 50.0
    routed = kernels.route(torch.ones(1, 32), Norm(torch.ones(32), 1e-6), router, 2, 0)
    assert routed.expert_ids.tolist() == [[2, 1]]
    assert routed.weights.tolist() == [[pytest.approx(1, abs=2e-6), 0.0]]


HEADS = [(2, 2, 80), (4, 2, 80), (2, 1, 128), (3, 1, 64), (8, 1, 32), (5, 1, 256), (4, 2, 24)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=name_of)
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), HEADS)
@pytest.mark.parametrize(("tokens", "past"), [(1, 0), (1, 63), (1, 64), (5, 0), (70, 60), (3, 200)])
def test_attend_span(
    kernels: CpuBackend,
    dtype: torch.dtype,
    heads: int,
    kv_heads: int,
    dim: int,
    tokens: int,
    past: int,
) -> None:
    qkv, table, keys, values = attention_case(tokens, heads, kv_heads, dim, dtype, past)
    expected_cache = keys.double(), values.double()
    exact = PLAIN.attend_span(qkv.double(), table, *expected_cache, 1, past)
    actual = kernels.attend_span(qkv, table, keys, values, 1, past)
    for mine, its in zip((keys, values), expected_cache, strict=True):
        written = slice(past, past + tokens)
        assert torch.equal(mine[1, :, written].isnan(), its[1, :, written].isnan())
        near = {"atol": 1e-5, "rtol": 1e-5 if dtype == torch.float32 else 2**-8}
        torch.testing.assert_close(mine.double(), its, equal_nan=True, **near)
    if dtype == torch.float32:
        assert relative_error(actual, exact) < FULL
    else:  # the oracle again, on the cache as it was rounded
        q = reference.rope(
            qkv.double().view(tokens, -1, dim)[:, : -2 * kv_heads],
            table.cos[past : past + tokens].double(),
            table.sin[past : past + tokens].double(),
        )
        seen = slice(0, past + tokens)
        k, v = keys[1, :, seen].double(), values[1, :, seen].double()
        assert relative_error(actual, reference.attention(q, k, v, past)) < FULL


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=name_of)
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), HEADS)
def test_attend_each(
    kernels: CpuBackend, dtype: torch.dtype, heads: int, kv_heads: int, dim: int
) -> None:
    """Sequences of different lengths: what each would get alone, bit for bit."""
    qkv, table, keys, values = attention_case(3, heads, kv_heads, dim, dtype, past=70)
    sequences, positions = [2, 0, 1], [64, 3, 70]
    alone = [
        kernels.attend_span(qkv[row : row + 1], table, k, v, sequence, position)
        for row, (sequence, position) in enumerate(zip(sequences, positions, strict=True))
        for k, v in [(keys.clone(), values.clone())]
    ]
    numbers = [torch.tensor(one, dtype=torch.int32) for one in (sequences, positions)]
    together = kernels.attend_each(qkv, table, keys, values, *numbers, 70)
    assert torch.equal(together, torch.cat(alone))


def test_attention_to_scores_far_apart(kernels: CpuBackend) -> None:
    """One key that outweighs all, in each block of positions."""
    for place in (0, 63, 64, 130):
        qkv, table, keys, values = attention_case(1, 2, 1, 32, torch.float32, past=140)
        table = Rotary(torch.ones_like(table.cos), torch.zeros_like(table.sin))
        keys[1, :, place] = qkv[0, 32:64] * 1e4
        qkv[0, :32] = qkv[0, 32:64]
        actual = kernels.attend_span(qkv, table, keys, values, 1, 140)
        torch.testing.assert_close(actual[0, 32:], values[1, 0, place])


@pytest.mark.parametrize("seed", range(40))
def test_shapes_at_random(kernels: CpuBackend, seed: int) -> None:
    rng = random.Random(seed)
    form = rng.choice(FORMS)
    hidden, width = 32 * rng.randrange(1, 12), 32 * rng.randrange(1, 12)
    count, tokens = rng.randrange(1, 9), rng.choice([1, 2, 3, 5, 13, 34])
    kernels.set_threads(rng.randrange(1, 4))
    experts = expert_blocks(count, hidden, width, form)
    routed = route_randomly(tokens, hidden, count, rng.randrange(1, count + 1), seed)
    actual = kernels.experts(routed, experts, torch.zeros(tokens, hidden))
    assert relative_error(actual, rounded_sum(routed, experts)) < ROUNDED_LIMIT
    layers = [
        Projection(matrix(rng.randrange(1, 70), hidden, rng.choice(FORMS), seed=row))
        for row in range(rng.randrange(1, 5))
    ]
    x = routed.normed
    exact = torch.cat([exact_linear(rounded(x, one.weight.form), [one]) for one in layers], dim=1)
    assert relative_error(kernels.linear(x, layers), exact) < ROUNDED_LIMIT
