"""Symmetric quantisation in groups of 32 along K, without calibration data.

A group of 32 weights becomes 32 small integers and one fp16 scale: w ~ q * scale. For int4 the
candidates put the weight of largest magnitude at -7 .. -9 steps (so that the one extra negative
value, -8, is used, and the extreme may be clipped a little); for each, the least-squares scale
sum(w q) / sum(q q) is taken, and the candidate with the smallest squared error wins.

The same weights give the same bytes on every machine: sums are written as a tree of elementwise
additions, because a library's reduction depends on its vector width and thread count.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

GROUP = 32
# Groups handled at once: three fp32 buffers of 32 * 2048 stay within a core's L2 cache.
TILE_GROUPS = 2048
INT4_STEPS = (8.0, 7.5, 8.5, 7.0, 9.0)
LARGEST_SCALE = 65504.0  # of fp16


class Quantised(NamedTuple):
    """``q`` [N, K] int8 and ``scales`` [N, K / 32] fp16; the matrix is q * scale."""

    q: Tensor
    scales: Tensor

    def dequantise(self) -> Tensor:
        """[N, K] fp32."""
        rows, columns = self.q.shape
        groups = self.q.view(rows, columns // GROUP, GROUP).float()
        return (groups * self.scales.float().unsqueeze(-1)).view(rows, columns)


def quantise(weight: Tensor, bits: int) -> Quantised:
    """Quantise a matrix.

    Args:
        weight: [N, K] of any float dtype, finite, K a multiple of 32.
        bits: 4 (q in -8 .. 7) or 8 (q in -127 .. 127).

    Raises:
        ValueError: a K that is no multiple of 32, or weights that are not finite.
    """
    rows, columns = weight.shape
    if columns % GROUP:
        raise ValueError(f"{columns} columns are no multiple of the group size {GROUP}")
    if not bool(torch.isfinite(weight).all()):
        raise ValueError("weights that are not finite cannot be quantised")
    groups = weight.reshape(-1, GROUP)
    q = torch.empty(groups.shape, dtype=torch.int8)
    scales = torch.empty(groups.shape[0], dtype=torch.float16)
    search = _search_int4 if bits == 4 else _search_int8
    low, high = (-8, 7) if bits == 4 else (-127, 127)
    for start in range(0, groups.shape[0], TILE_GROUPS):
        tile = slice(start, start + TILE_GROUPS)
        x = groups[tile].float().T.contiguous()  # [32, groups]: sums run over the first axis
        scale = search(x).clamp_(-LARGEST_SCALE, LARGEST_SCALE).half()
        scales[tile] = scale
        q[tile] = _rounded(x, _inverse(scale.float()), low, high).T
    return Quantised(q.view(rows, columns), scales.view(rows, columns // GROUP))


def _search_int4(x: Tensor) -> Tensor:
    """Least-squares scales [groups] of the best candidate for ``x`` [32, groups]."""
    extreme = x.gather(0, x.abs().argmax(0, keepdim=True)).squeeze(0)
    inverse_extreme = _inverse(extreme)
    q, product = torch.empty_like(x), torch.empty_like(x)
    best_gain = torch.full_like(extreme, -1.0)
    best_scale = torch.zeros_like(extreme)
    for steps in INT4_STEPS:
        torch.mul(x, inverse_extreme * -steps, out=q).round_().clamp_(-8, 7)
        overlap = _tree_sum_(torch.mul(x, q, out=product))
        energy = _tree_sum_(torch.mul(q, q, out=product))
        scale = overlap * _inverse(energy)
        gain = overlap * scale  # how much of sum(x x) this candidate explains
        better = gain > best_gain
        best_gain = torch.where(better, gain, best_gain)
        best_scale = torch.where(better, scale, best_scale)
    return best_scale


def _search_int8(x: Tensor) -> Tensor:
    """With 255 levels the largest magnitude decides; a search gains nothing worth its time."""
    return x.abs().amax(0) / 127.0


def _rounded(x: Tensor, inverse_scale: Tensor, low: int, high: int) -> Tensor:
    return (x * inverse_scale).round_().clamp_(low, high).to(torch.int8)


def _inverse(x: Tensor) -> Tensor:
    """1 / x, and 0 where x is 0 or so small that 1 / x overflows."""
    inverse = x.reciprocal()
    return torch.where(inverse.isfinite(), inverse, torch.zeros_like(x))


def _tree_sum_(x: Tensor) -> Tensor:
    """Sum of ``x`` [32, n] over the first axis in a fixed order; overwrites ``x``."""
    half = GROUP // 2
    while half:
        x[:half].add_(x[half : 2 * half])
        half //= 2
    return x[0].clone()
