"""Values at the edges: zeros, denormals, huge ones, and what is not a number."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.kernels.cpu.support import (
    FORMS,
    NAN,
    exact_linear,
    expert_blocks,
    matrix,
    name_of,
    norm_of,
    randn,
    relative_error,
    rotary,
    rounded,
    rounded_sum,
    route_randomly,
)
from xverse_kernels.cpu.backend import CpuBackend
from xverse_kernels.packing import BF16, INT8, WeightFormat
from xverse_kernels.types import Norm, Projection, RoutedTokens

forms = pytest.mark.parametrize("form", FORMS, ids=name_of)
INFINITY = float("inf")


@forms
def test_zeros(kernels: CpuBackend, form: WeightFormat) -> None:
    experts, routed = expert_blocks(3, 64, 96, form), route_randomly(5, 64, 3, 2)
    routed = routed._replace(normed=torch.zeros(5, 64))
    residual = randn(5, 64)
    assert torch.equal(kernels.experts(routed, experts, residual), residual)
    zero = kernels.linear(torch.zeros(5, 64), [Projection(matrix(20, 64, form))], norm=norm_of(64))
    assert torch.equal(zero, torch.zeros(5, 20))


def test_zero_weights(kernels: CpuBackend) -> None:
    for form in FORMS:
        experts, routed = expert_blocks(3, 64, 96, form), route_randomly(5, 64, 3, 2)
        routed = routed._replace(weights=torch.zeros(5, 2))
        residual = randn(5, 64)
        assert torch.equal(kernels.experts(routed, experts, residual), residual)


@forms
@pytest.mark.parametrize("scale", [1e-44, 1e-40, 1e-37, 1e-30, 1e-10, 1e10, 1e30, 1e33])
def test_small_and_large_values(kernels: CpuBackend, form: WeightFormat, scale: float) -> None:
    """Below 1e-34, packed weights count a group as zero: denormals may cost, and change nothing."""
    layer, x = [Projection(matrix(64, 96, form))], randn(6, 96).double()
    actual = kernels.linear((x * scale).float(), layer).double()
    assert actual.isfinite().all()
    if form is not BF16 and scale < 1e-34:
        assert not actual.any()
    elif scale > 1e-37:
        exact = exact_linear(rounded(x.float(), form), layer)
        assert relative_error(actual / scale, exact) < 1e-5


@forms
@pytest.mark.parametrize("scale", [1e-40, 1e-20, 1e15])
def test_experts_of_small_and_large_values(
    kernels: CpuBackend, form: WeightFormat, scale: float
) -> None:
    """Gate times up has the square of the scale."""
    experts, routed = expert_blocks(3, 64, 96, form), route_randomly(6, 64, 3, 2)
    scaled = routed._replace(normed=routed.normed * scale)
    actual = kernels.experts(scaled, experts, torch.zeros(6, 64))
    assert actual.isfinite().all()
    if scale > 1:
        assert relative_error(actual, rounded_sum(scaled, experts)) < 1e-4
    else:
        assert actual.abs().max() < 1e-30


def test_one_large_value_among_small_ones(kernels: CpuBackend) -> None:
    """It takes the steps of its group, and of no other."""
    layer = [Projection(matrix(64, 128, INT8))]
    x = randn(4, 128)
    x[:, 40] = 1e6
    exact = exact_linear(rounded(x, INT8), layer)
    assert relative_error(kernels.linear(x, layer), exact) < 1e-5
    x[:, 32:64] = 0
    small = kernels.linear(x, layer)
    assert relative_error(small, exact_linear(x, layer)) < 1e-2


@pytest.mark.parametrize("value", [NAN, INFINITY, -INFINITY])
@pytest.mark.parametrize("column", [0, 17, 63, 95])
@forms
def test_what_is_not_finite_stays_so(
    kernels: CpuBackend, form: WeightFormat, column: int, value: float
) -> None:
    """In its own token, and in no other; in the next call it is forgotten."""
    experts, routed = expert_blocks(3, 96, 64, form), route_randomly(7, 96, 3, 2)
    layer, x = [Projection(matrix(40, 96, form))], routed.normed
    bad = x.clone()
    bad[4, column] = value
    for operation in (
        lambda x: kernels.linear(x, layer),
        lambda x: kernels.experts(routed._replace(normed=x), experts, torch.zeros(7, 96)),
        lambda x: kernels.linear(x, layer, norm=norm_of(96)),
        lambda x: kernels.mlp(x, norm_of(96), experts, torch.zeros(7, 96)),
    ):
        good, spoilt, again = operation(x), operation(bad), operation(x)
        assert not spoilt[4].isfinite().any()
        others = [0, 1, 2, 3, 5, 6]
        assert torch.equal(spoilt[others], good[others])
        assert torch.equal(again, good)


@pytest.mark.parametrize("spoilt", ["weights", "residual", "bias", "norm"])
@pytest.mark.parametrize("value", [NAN, INFINITY])
def test_nothing_hides_what_is_not_finite(kernels: CpuBackend, spoilt: str, value: float) -> None:
    experts, routed = expert_blocks(3, 96, 64, INT8), route_randomly(3, 96, 3, 2)
    residual, bias, norm = randn(3, 96), randn(40), norm_of(96)
    {"weights": routed.weights, "residual": residual, "bias": bias[None], "norm": norm[0][None]}[
        spoilt
    ][0, 1] = value
    if spoilt in ("weights", "residual"):
        assert not kernels.experts(routed, experts, residual)[0, 1].isfinite()
        assert kernels.experts(routed, experts, residual)[1:].isfinite().all()
    else:
        out = kernels.linear(randn(3, 96), [Projection(matrix(40, 96, INT8), bias)], norm=norm)
        assert not out[:, 1].isfinite().any()


@pytest.mark.parametrize("value", [NAN, INFINITY])
def test_a_router_that_sees_what_is_not_finite(kernels: CpuBackend, value: float) -> None:
    x = randn(3, 64)
    x[1, 5] = value
    routed = kernels.route(x, norm_of(64), randn(8, 64, seed=3), 2, 1)
    assert routed.weights[1, :2].isnan().all()
    assert routed.logits[1].isnan().all()
    assert ((routed.expert_ids >= 0) & (routed.expert_ids < 9)).all()
    assert len(set(routed.expert_ids[1].tolist())) == 3
    assert routed.weights[[0, 2]].isfinite().all()


@pytest.mark.parametrize("part", ["query", "key", "value"])
@pytest.mark.parametrize("value", [NAN, INFINITY])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=name_of)
def test_attention_to_what_is_not_finite(
    kernels: CpuBackend, part: str, value: float, dtype: torch.dtype
) -> None:
    """It spoils what looks at it, and that alone: later tokens, or its own."""
    tokens, dim, spoilt = 9, 32, 5
    table = rotary(tokens, dim)
    qkv = randn(tokens, 3 * dim)

    def attend(x: Tensor) -> Tensor:
        caches: Any = [torch.zeros(1, 1, tokens, dim, dtype=dtype) for _ in range(2)]
        return kernels.attend_span(x, table, *caches, 0, 0)

    good = attend(qkv)
    qkv[spoilt, {"query": 0, "key": dim, "value": 2 * dim}[part] + 3] = value
    bad = attend(qkv)
    last = spoilt if part == "query" else tokens - 1
    assert torch.equal(bad[:spoilt], good[:spoilt])
    assert torch.equal(bad[last + 1 :], good[last + 1 :])
    column = 3 if part == "value" else slice(None)
    assert not bad[spoilt : last + 1, column].isfinite().any()


def test_large_products_overflow_as_fp32_does(kernels: CpuBackend) -> None:
    """Infinite or NaN, never a wrong number."""
    experts = expert_blocks(2, 64, 96, BF16)
    routed = RoutedTokens(
        torch.full((1, 64), 3e38), torch.ones(1, 1), torch.zeros(1, 1).long(), torch.empty(0)
    )
    assert not kernels.experts(routed, experts, torch.zeros(1, 64)).isfinite().all()
    huge = kernels.linear(
        torch.full((2, 64), 1e30), [Projection(matrix(20, 64, INT8))], norm=Norm(torch.ones(64), 0)
    )
    assert not huge.isfinite().all() or huge.abs().max() < 1e3


@forms
@pytest.mark.parametrize("scale", [1e35, 1e36, 1e37, 1e38])
def test_the_largest_values_are_right_or_infinite(
    kernels: CpuBackend, form: WeightFormat, scale: float
) -> None:
    """The sum of a group, before its scales, is up to half a million times what comes of it."""
    layer, x = [Projection(matrix(64, 96, form))], (randn(6, 96).clamp(-3, 3) * scale)
    actual, exact = kernels.linear(x, layer), exact_linear(rounded(x, form), layer)
    finite = actual.isfinite()
    assert relative_error(actual[finite], exact[finite]) < 1e-5 or not finite.any()
