"""Keys and values as a cache holds them: in the dtype of activations, or in int8."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

STEPS = 127


class Int8Rows(NamedTuple):
    """Vectors in int8 with an fp16 scale each: ``integers`` [..., D], ``scales`` [...].

    The largest magnitude of a vector is 127 steps. One that holds NaN or infinity, or is beyond
    8.3e6, comes back as NaN.
    """

    integers: Tensor
    scales: Tensor

    @property
    def shape(self) -> torch.Size:
        return self.integers.shape

    @property
    def nbytes(self) -> int:
        return self.integers.nbytes + self.scales.nbytes


Rows = Tensor | Int8Rows
Place = int | slice


def empty_rows(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Rows:
    """Memory for vectors [..., D]; `torch.int8` stands for `Int8Rows`."""
    data = torch.empty(shape, dtype=dtype, device=device)
    if dtype != torch.int8:
        return data
    return Int8Rows(data, torch.empty(shape[:-1], dtype=torch.float16, device=device))


def row_bytes(width: int, dtype: torch.dtype) -> int:
    """Of one vector."""
    return width * dtype.itemsize + (torch.float16.itemsize if dtype == torch.int8 else 0)


def to_int8(x: Tensor) -> Int8Rows:
    """Vectors [..., D], rounded to the nearest step."""
    x = x.float()
    largest = x.abs().amax(-1)
    scales = torch.where(largest.isfinite(), largest / STEPS, torch.nan).half()
    steps = scales.float()
    usable = (steps > 0) & steps.isfinite()
    inverse = torch.where(usable, 1 / steps, 0.0).unsqueeze(-1)
    integers = (x * inverse).clamp(-STEPS, STEPS).round().nan_to_num(0.0)
    return Int8Rows(integers.to(torch.int8), scales)


def write_rows(rows: Rows, place: tuple[Place, ...], x: Tensor) -> None:
    """Put vectors at a place, converted to what is kept there."""
    if isinstance(rows, Int8Rows):
        integers, scales = to_int8(x)
        rows.integers[place] = integers
        rows.scales[place] = scales
    else:
        rows[place] = x.to(rows.dtype)


def read_rows(rows: Rows, place: tuple[Place, ...], dtype: torch.dtype) -> Tensor:
    """The vectors at a place, in ``dtype``."""
    if isinstance(rows, Int8Rows):
        dense = rows.integers[place].float() * rows.scales[place].float().unsqueeze(-1)
        return dense.to(dtype)
    return rows[place].to(dtype)
