"""What a token gets is the same to the last bit, whatever shares its call and computes it."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from tests.kernels.cpu.support import (
    FORMS,
    expert_blocks,
    matrix,
    name_of,
    norm_of,
    randn,
    rotary,
    route_randomly,
)
from xverse_kernels.cpu.backend import CpuBackend
from xverse_kernels.cpu.extension import native
from xverse_kernels.cpu.plain import MOST_ALONE
from xverse_kernels.packing import BF16, FP16, INT4, INT8, ExpertBlocks, WeightFormat
from xverse_kernels.types import Projection, RoutedTokens

TOKENS = 37
HIDDEN, WIDTH = 160, 96

Operation = Callable[[CpuBackend, slice], Tensor]


def splits(tokens: int) -> Iterator[list[slice]]:
    """All at once, one by one, and cut at random."""
    yield [slice(0, tokens)]
    yield [slice(row, row + 1) for row in range(tokens)]
    rng = random.Random(tokens)
    for _ in range(4):
        ends = sorted(rng.sample(range(1, tokens), k=min(5, tokens - 1)))
        yield [slice(a, b) for a, b in zip([0, *ends], [*ends, tokens], strict=True)]


def check(kernels: CpuBackend, operation: Operation, tokens: int = TOKENS) -> None:
    results = []
    for threads, split in enumerate(splits(tokens)):
        native.set_threads(1 + threads % 4)
        results.append(torch.cat([operation(kernels, rows) for rows in split]))
    for threads in range(1, 5):
        native.set_threads(threads)
        results.append(operation(kernels, slice(0, tokens)))
    assert results[0].isfinite().all()
    for result in results[1:]:
        assert torch.equal(result, results[0])


def experts_operation(experts: ExpertBlocks, tokens: int = TOKENS) -> Operation:
    hidden, slots = experts.layout.hidden, min(3, len(experts))
    routed = route_randomly(tokens, hidden, len(experts), slots)
    residual = randn(tokens, hidden, seed=9)

    def operation(kernels: CpuBackend, rows: slice) -> Tensor:
        some = RoutedTokens(*(part[rows] for part in routed))
        return kernels.experts(some, experts, residual[rows])

    return operation


@pytest.mark.parametrize("form", FORMS, ids=name_of)
@pytest.mark.parametrize("count", [1, 3, 7])
def test_experts(kernels: CpuBackend, form: WeightFormat, count: int) -> None:
    check(kernels, experts_operation(expert_blocks(count, HIDDEN, WIDTH, form)))


@pytest.mark.parametrize("form", FORMS, ids=name_of)
def test_linear(kernels: CpuBackend, form: WeightFormat) -> None:
    layers = [
        Projection(matrix(100, HIDDEN, form, seed=1), randn(100, seed=2)),
        Projection(matrix(33, HIDDEN, INT8, seed=3)),
    ]
    x, residual, norm = randn(TOKENS, HIDDEN), randn(TOKENS, 133, seed=4), norm_of(HIDDEN)

    def operation(kernels: CpuBackend, rows: slice) -> Tensor:
        return kernels.linear(x[rows], layers, norm=norm, residual=residual[rows])

    check(kernels, operation)


def test_route(kernels: CpuBackend) -> None:
    x, norm, router = randn(TOKENS, 100), norm_of(100), randn(12, 100, seed=2)

    def operation(kernels: CpuBackend, rows: slice) -> Tensor:
        return torch.cat([part.float() for part in kernels.route(x[rows], norm, router, 4, 2)], 1)

    check(kernels, operation)


@pytest.mark.parametrize("form", FORMS, ids=name_of)
def test_mlp_of_few_tokens(kernels: CpuBackend, form: WeightFormat) -> None:
    """The norm is torch's: of more tokens than decoding computes at once it may differ."""
    experts, norm, x = expert_blocks(1, HIDDEN, WIDTH, form), norm_of(HIDDEN), randn(16, HIDDEN)
    check(kernels, lambda kernels, rows: kernels.mlp(x[rows], norm, experts, x[rows]), MOST_ALONE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=name_of)
@pytest.mark.parametrize("past", [0, 50, 129])
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(4, 2, 80), (2, 2, 32), (6, 1, 128)])
def test_attention_to_a_growing_past(
    kernels: CpuBackend, dtype: torch.dtype, past: int, heads: int, kv_heads: int, dim: int
) -> None:
    tokens, table = 40, rotary(past + 40, dim)
    qkv = randn(tokens, (heads + 2 * kv_heads) * dim, seed=3)
    before = [randn(1, kv_heads, past, dim, seed=seed).to(dtype) for seed in (4, 5)]
    caches = []

    def operation(kernels: CpuBackend, rows: slice) -> Tensor:
        if rows.start == 0:
            caches.append([torch.full((1, kv_heads, past + tokens, dim), torch.nan).to(dtype)])
            caches[-1].append(caches[-1][0].clone())
            for cache, old in zip(caches[-1], before, strict=True):
                cache[:, :, :past] = old
        return kernels.attend_span(qkv[rows], table, *caches[-1], 0, past + rows.start)

    check(kernels, operation, tokens)
    for keys, values in caches[1:]:
        assert torch.equal(keys, caches[0][0])
        assert torch.equal(values, caches[0][1])


# What torch computes instead, for as many tokens as decoding ever computes at once.


@pytest.mark.parametrize("weight", [randn(70, 64), randn(70, 40).bfloat16()], ids=["fp32", "width"])
def test_fallback_of_linear(fastest: CpuBackend, weight: Tensor) -> None:
    x = randn(MOST_ALONE, weight.shape[1], seed=2)
    check(fastest, lambda kernels, rows: kernels.linear(x[rows], [Projection(weight)]), MOST_ALONE)


def test_forms_that_do_not_go_together(fastest: CpuBackend) -> None:
    layers = [Projection(matrix(50, 64, form)) for form in (INT4, BF16, INT8, INT4, BF16)]
    x = randn(TOKENS, 64)
    check(fastest, lambda kernels, rows: kernels.linear(x[rows], layers))


@pytest.mark.parametrize(("form", "width"), [(FP16, 96), (BF16, 48)], ids=name_of)
def test_fallback_of_experts(fastest: CpuBackend, form: WeightFormat, width: int) -> None:
    check(fastest, experts_operation(expert_blocks(4, 64, width, form), MOST_ALONE), MOST_ALONE)


def test_fallback_of_attention(fastest: CpuBackend) -> None:
    """Token by token, however many they are."""
    qkv, table = randn(TOKENS, 4 * 24), rotary(TOKENS, 24)
    keys, values = torch.zeros(1, 1, TOKENS, 24), torch.zeros(1, 1, TOKENS, 24)
    check(
        fastest,
        lambda kernels, rows: kernels.attend_span(qkv[rows], table, keys, values, 0, rows.start),
    )
