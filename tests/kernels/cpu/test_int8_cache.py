"""Attention over keys and values in int8, with every instruction set."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.kernels.cpu.support import attention_case, guarded, randn, relative_error, rotary
from tests.kernels.cpu.test_cpu_backend import FULL, HEADS
from tests.kernels.cpu.test_splits import check
from xverse_kernels import reference
from xverse_kernels.cpu.backend import CpuBackend
from xverse_kernels.kv_rows import Int8Rows, read_rows, to_int8
from xverse_kernels.reference_backend import ReferenceBackend
from xverse_kernels.types import Rotary

PLAIN = ReferenceBackend()
NAN = float("nan")
Case = tuple[Tensor, Rotary, Int8Rows, Int8Rows]


def int8_case(tokens: int, heads: int, kv_heads: int, dim: int, past: int = 0) -> Case:
    """`attention_case` with a cache in int8; what nobody has written has NaN for a scale."""
    qkv, table, *caches = attention_case(tokens, heads, kv_heads, dim, torch.float32, past)
    keys, values = (Int8Rows(*map(guarded_of, to_int8(one))) for one in caches)
    return qkv, table, keys, values


def guarded_of(part: Tensor) -> Tensor:
    """Integers have no NaN: their neighbours do as they are."""
    return guarded(part) if part.is_floating_point() else part


def copy_of(rows: Int8Rows) -> Int8Rows:
    return Int8Rows(*(one.clone() for one in rows))


@pytest.mark.parametrize(("heads", "kv_heads", "dim"), HEADS)
@pytest.mark.parametrize(("tokens", "past"), [(1, 0), (1, 63), (1, 64), (5, 0), (70, 60), (3, 200)])
def test_a_stretch_of_tokens(
    kernels: CpuBackend, heads: int, kv_heads: int, dim: int, tokens: int, past: int
) -> None:
    qkv, table, keys, values = int8_case(tokens, heads, kv_heads, dim, past)
    its = copy_of(keys), copy_of(values)
    PLAIN.attend_span(qkv, table, *its, 1, past)
    actual = kernels.attend_span(qkv, table, keys, values, 1, past)
    for mine, other in zip((keys, values), its, strict=True):
        # rotation may round otherwise, and then an integer or a scale
        assert (mine.integers.int() - other.integers).abs().max() <= 1
        assert torch.allclose(mine.scales, other.scales, rtol=2**-10, atol=0, equal_nan=True)
    end = past + tokens
    q = reference.rope(
        qkv.double().view(tokens, -1, dim)[:, : -2 * kv_heads],
        table.cos[past:end].double(),
        table.sin[past:end].double(),
    )
    seen = (1, slice(None), slice(end))
    k, v = (read_rows(one, seen, torch.float64) for one in (keys, values))
    assert relative_error(actual, reference.attention(q, k, v, past)) < FULL


@pytest.mark.parametrize(("heads", "kv_heads", "dim"), HEADS)
def test_a_token_each(kernels: CpuBackend, heads: int, kv_heads: int, dim: int) -> None:
    """What each sequence would get alone, bit for bit."""
    qkv, table, keys, values = int8_case(3, heads, kv_heads, dim, past=70)
    sequences, positions = [2, 0, 1], [64, 3, 70]
    alone = [
        kernels.attend_span(
            qkv[row : row + 1], table, copy_of(keys), copy_of(values), sequence, position
        )
        for row, (sequence, position) in enumerate(zip(sequences, positions, strict=True))
    ]
    numbers = [torch.tensor(one, dtype=torch.int32) for one in (sequences, positions)]
    together = kernels.attend_each(qkv, table, keys, values, *numbers, 70)
    assert torch.equal(together, torch.cat(alone))


@pytest.mark.parametrize("past", [0, 50, 129])
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(4, 2, 80), (6, 1, 128), (2, 1, 24)])
def test_a_growing_past_in_any_split(
    kernels: CpuBackend, past: int, heads: int, kv_heads: int, dim: int
) -> None:
    """A text that is continued has the bits of one that was computed at once."""
    tokens = 40
    qkv, table, *before = int8_case(tokens, heads, kv_heads, dim, past)
    caches: list[tuple[Int8Rows, Int8Rows]] = []

    def operation(kernels: CpuBackend, rows: slice) -> Tensor:
        if rows.start == 0:
            caches.append((copy_of(before[0]), copy_of(before[1])))
        return kernels.attend_span(qkv[rows], table, *caches[-1], 0, past + rows.start)

    check(kernels, operation, tokens)
    for pair in caches[1:]:
        for mine, first in zip(pair, caches[0], strict=True):
            assert torch.equal(mine.integers, first.integers)
            assert torch.equal(mine.scales.isnan(), first.scales.isnan())
            assert torch.equal(mine.scales.nan_to_num(), first.scales.nan_to_num())


def test_other_activations_and_gaps_fall_back(fastest: CpuBackend) -> None:
    qkv, table, keys, values = int8_case(3, 2, 1, 32, past=9)
    expected = fastest.attend_span(qkv, table, copy_of(keys), copy_of(values), 1, 9)
    half = fastest.attend_span(qkv.bfloat16(), table, copy_of(keys), copy_of(values), 1, 9)
    assert half.dtype == torch.bfloat16
    assert relative_error(half, expected) < 0.02
    wide = torch.stack((keys.scales, torch.zeros_like(keys.scales)), dim=-1)
    apart = Int8Rows(keys.integers, wide[..., 0])
    assert not apart.scales.is_contiguous()
    assert relative_error(fastest.attend_span(qkv, table, apart, values, 1, 9), expected) < FULL


@pytest.mark.parametrize("part", ["query", "key", "value"])
@pytest.mark.parametrize("value", [NAN, float("inf"), 1e8])
def test_what_is_not_finite(kernels: CpuBackend, part: str, value: float) -> None:
    """It spoils what looks at it, all of a vector, and that alone. 1e8 is beyond an fp16 scale."""
    tokens, dim, spoilt = 9, 32, 5
    table, qkv = rotary(tokens, dim), randn(tokens, 3 * dim)

    def attend(x: Tensor) -> Tensor:
        caches = [to_int8(torch.zeros(1, 1, tokens, dim)) for _ in range(2)]
        return kernels.attend_span(x, table, caches[0], caches[1], 0, 0)

    good = attend(qkv)
    qkv[spoilt, {"query": 0, "key": dim, "value": 2 * dim}[part] + 3] = value
    bad = attend(qkv)
    last = spoilt if part == "query" else tokens - 1
    assert torch.equal(bad[:spoilt], good[:spoilt])
    assert torch.equal(bad[last + 1 :], good[last + 1 :])
    if part != "query" or value != 1e8:
        assert not bad[spoilt : last + 1].isfinite().any()
