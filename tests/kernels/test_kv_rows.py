"""Keys and values in int8: nearest steps, one scale a vector, and nothing that hides."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from xverse_kernels.kv_rows import Int8Rows, empty_rows, read_rows, row_bytes, to_int8, write_rows

CPU = torch.device("cpu")
NAN, INFINITY = float("nan"), float("inf")


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def dense(rows: Int8Rows, dtype: torch.dtype = torch.float32) -> Tensor:
    return read_rows(rows, (slice(None),), dtype)


@pytest.mark.parametrize("width", [1, 24, 80, 128])
@pytest.mark.parametrize("size", [1e-3, 1.0, 1e5])
def test_values_come_back_within_half_a_step(width: int, size: float) -> None:
    x = randn(50, width) * size
    rows = to_int8(x)
    steps = x.abs().amax(-1, keepdim=True) / 127
    assert ((dense(rows) - x).abs() <= steps * 0.5005 + 127 * 2**-25).all()
    # a step of few bits, below 6e-5, may be a little too large
    assert (rows.integers.abs().amax(-1) >= (126 if size == 1e-3 else 127)).all()
    assert torch.allclose(rows.scales.float(), steps[:, 0], rtol=2**-11, atol=2**-25)


def test_the_nearest_integer_and_of_two_the_even_one() -> None:
    x = torch.tensor([127.0, 0.5, 1.5, -2.5, 0.4, -126.6])
    assert to_int8(x).integers.tolist() == [127, 0, 2, -2, 0, -127]


@pytest.mark.parametrize("bad", [NAN, INFINITY, -INFINITY, 1e8])
def test_what_is_not_finite_or_beyond_fp16_spoils_its_vector_alone(bad: float) -> None:
    x = randn(3, 80)
    x[1, 7] = bad
    back = dense(to_int8(x))
    assert back[1].isnan().all()
    assert torch.equal(back[[0, 2]], dense(to_int8(x[[0, 2]])))


def test_zeros_and_what_is_too_small_are_zero() -> None:
    x = torch.zeros(3, 16)
    x[1], x[2] = 1e-30, 1e-6  # the smallest step is 6e-8
    back = dense(to_int8(x))
    assert not back[:2].any()
    assert ((back[2] - 1e-6).abs() <= 127 * 2**-25).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
def test_written_rows_are_read_again(dtype: torch.dtype) -> None:
    rows = empty_rows((2, 3, 5, 16), dtype, CPU)
    place = (1, slice(None), slice(2, 4))
    x = randn(3, 2, 16).bfloat16().float()
    write_rows(rows, place, x)
    back = read_rows(rows, place, torch.float32)
    expected = dense(to_int8(x)) if dtype == torch.int8 else x
    assert torch.equal(back, expected)
    assert read_rows(rows, place, torch.bfloat16).dtype == torch.bfloat16
    assert rows.shape == (2, 3, 5, 16)
    assert rows.nbytes == 2 * 3 * 5 * row_bytes(16, dtype)


def test_a_vector_of_80_takes_82_bytes() -> None:
    assert row_bytes(80, torch.int8) == 82
    assert row_bytes(80, torch.bfloat16) == 160
