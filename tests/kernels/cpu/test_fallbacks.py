"""What the C code does not compute torch does, and what is laid out otherwise is copied first."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.kernels.cpu.support import (
    attention_case,
    exact_linear,
    exact_sum,
    expert_blocks,
    matrix,
    name_of,
    norm_of,
    randn,
    relative_error,
    route_randomly,
)
from xverse_kernels.cpu.backend import CpuBackend
from xverse_kernels.packing import BF16, FP16, INT4, INT8, WeightFormat
from xverse_kernels.reference_backend import ReferenceBackend
from xverse_kernels.types import Projection, RoutedTokens

PLAIN = ReferenceBackend()
FULL = 1e-5  # fp32 sums in another order
HALF = 2**-7  # results and sums in bf16


@pytest.mark.parametrize("tokens", [1, 5, 30])
def test_fp32_weights_fall_back(fastest: CpuBackend, tokens: int) -> None:
    layers = [Projection(randn(20, 64), randn(20, seed=1)), Projection(randn(16, 64, seed=2))]
    x, norm, residual = randn(tokens, 64), norm_of(64), randn(tokens, 36)
    actual = fastest.linear(x, layers, norm=norm, residual=residual)
    assert relative_error(actual, residual + exact_linear(x, layers, norm)) < FULL


@pytest.mark.parametrize("form", [BF16, INT8], ids=name_of)
def test_bf16_activations_fall_back(fastest: CpuBackend, form: WeightFormat) -> None:
    layer, x = [Projection(matrix(20, 64, form))], randn(3, 64).bfloat16()
    actual = fastest.linear(x, layer)
    assert actual.dtype == torch.bfloat16
    assert relative_error(actual, exact_linear(x, layer)) < HALF


def test_widths_between_vectors_fall_back(fastest: CpuBackend) -> None:
    weight, x = randn(20, 40).bfloat16(), randn(3, 40)
    assert relative_error(fastest.linear(x, [Projection(weight)]), x @ weight.float().T) < FULL


@pytest.mark.parametrize(("form", "width"), [(FP16, 64), (BF16, 48)], ids=name_of)
@pytest.mark.parametrize("tokens", [3, 20])
def test_other_blocks_fall_back(
    fastest: CpuBackend, form: WeightFormat, width: int, tokens: int
) -> None:
    experts, routed = expert_blocks(4, 64, width, form), route_randomly(tokens, 64, 4, 2)
    actual = fastest.experts(routed, experts, torch.zeros(tokens, 64))
    assert relative_error(actual, exact_sum(routed, experts)) < FULL
    dense = fastest.mlp(routed.normed, norm_of(64), experts, routed.normed)
    assert (
        relative_error(dense, PLAIN.mlp(routed.normed, norm_of(64), experts, routed.normed)) < FULL
    )


def test_experts_that_are_not_packed_fall_back(fastest: CpuBackend) -> None:
    experts, routed = expert_blocks(4, 64, 96, INT4), route_randomly(5, 64, 4, 2)
    actual = fastest.experts(routed, list(experts), torch.zeros(5, 64))
    assert relative_error(actual, exact_sum(routed, experts)) < FULL


def spread(tensor: Tensor) -> Tensor:
    """The same values with others between them."""
    wide = torch.stack((tensor, torch.full_like(tensor, 3)), dim=-1)
    return wide[..., 0]


def test_inputs_need_not_be_contiguous(fastest: CpuBackend) -> None:
    experts, routed = expert_blocks(4, 64, 96, INT8), route_randomly(5, 64, 4, 2)
    residual, x = randn(5, 64, seed=3), routed.normed
    apart = RoutedTokens(*map(spread, routed))
    assert not apart.expert_ids.is_contiguous()
    assert torch.equal(
        fastest.experts(apart, experts, spread(residual)),
        fastest.experts(routed, experts, residual),
    )
    layer, norm = [Projection(matrix(64, 64, INT4))], norm_of(64)
    assert torch.equal(
        fastest.linear(spread(x), layer, norm=norm, residual=spread(residual)),
        fastest.linear(x, layer, norm=norm, residual=residual),
    )
    router = randn(8, 64, seed=5)
    for mine, its in zip(
        fastest.route(spread(x), norm, router, 2, 1),
        fastest.route(x, norm, router, 2, 1),
        strict=True,
    ):
        assert torch.equal(mine, its)
    qkv, table, keys, values = attention_case(3, 2, 1, 32, torch.float32)
    assert torch.equal(
        fastest.attend_span(spread(qkv), table, keys.clone(), values.clone(), 0, 0),
        fastest.attend_span(qkv, table, keys, values, 0, 0),
    )


def test_a_slice_of_the_experts(fastest: CpuBackend) -> None:
    experts, routed = expert_blocks(6, 64, 96, INT8), route_randomly(5, 64, 3, 2)
    every_second = experts[::2]
    actual = fastest.experts(routed, every_second, torch.zeros(5, 64))
    doubled = routed._replace(expert_ids=routed.expert_ids * 2)
    assert torch.equal(actual, fastest.experts(doubled, experts, torch.zeros(5, 64)))


@pytest.mark.parametrize("tokens", [4, 20])
def test_bf16_all_the_way(fastest: CpuBackend, tokens: int) -> None:
    """Activations of the other kernels: nobody reads them as fp32."""
    experts = expert_blocks(4, 64, 96, INT8, dtype=torch.bfloat16)
    routed = route_randomly(tokens, 64, 4, 2)
    x, residual = routed.normed.bfloat16(), torch.zeros(tokens, 64, dtype=torch.bfloat16)
    half = routed._replace(normed=x, weights=routed.weights.bfloat16())
    assert relative_error(fastest.experts(half, experts, residual), exact_sum(half, experts)) < 0.02
    norm, router = norm_of(64)._replace(weight=torch.ones(64).bfloat16()), randn(8, 64, seed=3)
    chosen, its = (one.route(x, norm, router, 2, 1) for one in (fastest, PLAIN))
    assert chosen.normed.dtype == torch.bfloat16
    assert torch.equal(chosen.expert_ids, its.expert_ids)
    assert relative_error(chosen.logits, its.logits) < FULL
    mine, its = (one.mlp(x, norm, experts, residual) for one in (fastest, PLAIN))
    assert relative_error(mine, its) < HALF
    qkv, table, keys, values = attention_case(tokens, 2, 1, 32, torch.float32)
    mine = fastest.attend_span(qkv.bfloat16(), table, keys, values, 0, 0)
    assert relative_error(mine, PLAIN.attend_span(qkv, table, keys, values, 0, 0)) < 0.02


def test_a_cache_with_gaps(fastest: CpuBackend) -> None:
    qkv, table, keys, values = attention_case(3, 2, 1, 32, torch.float32)
    expected = fastest.attend_span(qkv, table, keys.clone(), values.clone(), 0, 0)
    apart = spread(keys), spread(values)
    actual = fastest.attend_span(qkv, table, *apart, 0, 0)
    assert relative_error(actual, expected) < FULL
    assert apart[0][0, :, :3].isfinite().all()


def test_int32_ids(fastest: CpuBackend) -> None:
    experts, routed = expert_blocks(4, 64, 96, INT8), route_randomly(5, 64, 4, 2)
    short = routed._replace(expert_ids=routed.expert_ids.int())
    assert torch.equal(
        fastest.experts(short, experts, torch.zeros(5, 64)),
        fastest.experts(routed, experts, torch.zeros(5, 64)),
    )
