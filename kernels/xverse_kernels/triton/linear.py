"""Launching the linear layers."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from xverse_kernels.packing import PackedMatrix
from xverse_kernels.triton.launch import (
    MOST_PROGRAMS,
    Launcher,
    Workspace,
    matrix_views,
    padded,
    require_rows,
)
from xverse_kernels.triton.linear_kernels import dequantise_kernel, linear_kernel
from xverse_kernels.triton.tiles import GemvTile, linear_tile

DEQUANTISE_WORDS = 64
_linear = Launcher(linear_kernel)
_dequantise = Launcher(dequantise_kernel)


def gemv(
    x: Tensor,
    weight: Tensor | PackedMatrix,
    workspace: Workspace,
    *,
    norm: Tensor | None = None,
    eps: float = 0.0,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    tile: GemvTile | None = None,
    pdl: bool = False,
) -> Tensor:
    """``W (norm * x / rms(x)) + bias + residual``, token by token.

    Args:
        x: [T, K].
        weight: [N, K]; K a multiple of 32 when packed.
        workspace: scratch of the device.
        norm: [K]; without it x is taken as it is.
        eps: of the norm.
        bias: [N].
        residual: [T, N].
        out_dtype: of the result [T, N]; that of x by default.
        tile: instead of the one of the table.
        pdl: programmatic dependent launch (compute capability 9.0 and later).
    """
    weights, scales, bits, rows, columns = matrix_views(weight)
    require_rows(x, *(one for one in (norm, bias, residual) if one is not None))
    tile = tile or linear_tile(bits, rows)
    tokens = x.shape[0]
    out = torch.empty(tokens, rows, dtype=out_dtype or x.dtype, device=x.device)
    tiles = -(-rows // tile.rows)
    while tiles > MOST_PROGRAMS:  # a vocabulary beyond all that is known: larger tiles, slower
        tile = replace(tile, rows=2 * tile.rows)
        tiles = -(-rows // tile.rows)
    _linear(
        (tokens, tiles, tile.splits),
        (
            x,
            x if norm is None else norm,
            weights,
            scales,
            x if bias is None else bias,
            x if residual is None else residual,
            out,
            workspace.partials(tokens * tiles * tile.splits * tile.rows),
            workspace.zeros(tokens * tiles if tile.splits > 1 else 0),
            eps,
            rows,
        ),
        {
            "K": columns,
            "K_PADDED": padded(columns),
            "BITS": bits,
            "ROWS": tile.rows,
            "BLOCK": tile.block,
            "SPLITS": tile.splits,
            "HAS_NORM": norm is not None,
            "HAS_BIAS": bias is not None,
            "HAS_RESIDUAL": residual is not None,
            "PDL": pdl,
        },
        warps=tile.warps,
        pdl=pdl,
    )
    return out


def dequantise(weight: PackedMatrix, dtype: torch.dtype) -> Tensor:
    """The matrix [rows, columns] that packed bytes stand for."""
    weights, scales, bits, rows, columns = matrix_views(weight)
    out = torch.empty(rows, columns, dtype=dtype, device=weight.data.device)
    words = columns * bits // 32
    _dequantise(
        (-(-rows // 16), -(-words // DEQUANTISE_WORDS)),
        (weights, scales, out, rows),
        {"K": columns, "BITS": bits, "WORDS": DEQUANTISE_WORDS},
    )
    return out
