"""The fp64 references and checks of bench.gpu.parity: as the reference computes, and awake."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from tests.kernels.triton.interpreter import NAN, pack_experts, route_randomly

# isort: split
from bench.gpu.inputs import Shape, random_rotary
from bench.gpu.parity import (
    attention_in_fp64,
    dense_experts,
    experts_in_fp64,
    experts_near,
    kept_in_fp64,
    linear_in_fp64,
    relative_error,
    routed_rightly,
)
from bench.gpu.random_weights import random_packed
from xverse_kernels import reference
from xverse_kernels.kv_rows import Rows, read_rows, to_int8
from xverse_kernels.packing import BF16, INT4, INT8, WeightFormat
from xverse_kernels.reference_backend import ReferenceBackend
from xverse_kernels.types import Norm, Projection, RoutedTokens

SHAPE = Shape(heads=4, dim=80, device="cpu", dtype=torch.float32)
REFERENCE = ReferenceBackend()
SINGLE = 1e-6  # what fp32 leaves


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("cache", [torch.float32, torch.int8], ids=str)
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize(("tokens", "past"), [(1, 0), (1, 9), (5, 7)])
def test_attention(tokens: int, past: int, kv_heads: int, cache: torch.dtype) -> None:
    rotary, qkv = random_rotary(20, SHAPE), SHAPE.randn(tokens, (4 + 2 * kv_heads) * 80)
    rows: list[Rows] = []
    for _ in range(2):
        dense = SHAPE.randn(3, kv_heads, 20, 80)
        dense[:, :, past:] = NAN
        rows.append(to_int8(dense) if cache == torch.int8 else dense)
    found = attention_in_fp64(qkv, rotary, *rows, 2, past)
    kept = kept_in_fp64(qkv, rotary, rows[0], past)
    assert relative_error(found, REFERENCE.attend_span(qkv, rotary, *rows, 2, past)) < SINGLE
    new = (2, slice(None), slice(past, past + tokens))
    for ours, theirs in zip(kept, rows, strict=True):
        # an integer that lies between two steps can be rounded either way
        limit = 1e-2 if cache == torch.int8 else SINGLE
        assert relative_error(ours, read_rows(theirs, new, torch.float64)) < limit


@pytest.mark.parametrize("form", [BF16, INT8, INT4], ids=lambda form: form.name)
def test_linear_layers(form: WeightFormat) -> None:
    matrix = random_packed(50, 64, form, "cpu")
    if isinstance(matrix, torch.Tensor):
        matrix = matrix.float()
    x, residual = SHAPE.randn(3, 64), SHAPE.randn(3, 50)
    norm = Norm(torch.rand(64) + 0.5, 1e-6)
    found = linear_in_fp64(x, matrix, norm, residual)
    expected = REFERENCE.linear(x, [Projection(matrix)], norm=norm, residual=residual)
    assert relative_error(found, expected) < SINGLE


@pytest.mark.parametrize("tokens", [1, 9])
def test_experts(tokens: int) -> None:
    blocks, routed = pack_experts(6, 64, 32, INT4), route_randomly(tokens, 64, 6, 3)
    expected = reference.moe(routed.normed, routed.weights, routed.expert_ids.long(), blocks)
    assert relative_error(experts_in_fp64(blocks, routed), expected) < SINGLE
    residual = SHAPE.randn(tokens, 64)
    check = experts_near(blocks, routed, residual, dense_experts(blocks))
    check(residual + expected)
    for token in {0, (tokens - 1) // 2, tokens - 1}:
        wrong = residual + expected
        wrong[token] -= expected[token]
        with pytest.raises(ValueError, match="relative error"):
            check(wrong)
    wrong = residual + expected
    wrong[tokens // 3, 5] = NAN
    with pytest.raises(ValueError, match="not finite"):
        check(wrong)


def exchanged(routed: RoutedTokens) -> RoutedTokens:
    """Two experts that do not weigh the same have changed places."""
    ids = routed.expert_ids.clone()
    ids[:, [0, 1]] = ids[:, [1, 0]]
    return routed._replace(expert_ids=ids)


def twice(routed: RoutedTokens) -> RoutedTokens:
    ids = routed.expert_ids.clone()
    ids[-1, 1] = ids[-1, 0]
    return routed._replace(expert_ids=ids)


def unwritten(routed: RoutedTokens) -> RoutedTokens:
    ids = routed.expert_ids.clone()
    ids[0, 2] = -12345
    return routed._replace(expert_ids=ids)


@pytest.mark.parametrize(
    "spoil",
    [
        exchanged,
        twice,
        unwritten,
        lambda routed: routed._replace(normed=routed.normed * 1.1),
        lambda routed: routed._replace(logits=routed.logits * 1.001),
        lambda routed: routed._replace(weights=routed.weights * 1.1),
        lambda routed: routed._replace(expert_ids=routed.expert_ids.flip(1)),
    ],
)
def test_routers(spoil: Callable[[RoutedTokens], RoutedTokens]) -> None:
    x, norm = SHAPE.randn(5, 64), Norm(torch.rand(64) + 0.5, 1e-6)
    router = SHAPE.randn(16, 64) / 8
    check = routed_rightly(x, norm, router, 4, 2)
    routed = REFERENCE.route(x, norm, router, 4, 2)
    check(routed)
    with pytest.raises(ValueError, match=r"relative error|chosen|shared experts"):
        check(spoil(routed))
