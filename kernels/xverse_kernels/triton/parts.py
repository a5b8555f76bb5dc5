"""Launching what computes slots apart, and what adds them up."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from xverse_kernels.packing import ExpertBlocks
from xverse_kernels.triton.launch import Launcher, block_views, require_rows
from xverse_kernels.triton.part_kernels import add_parts_kernel, down_parts_kernel
from xverse_kernels.triton.tiles import ADD_COLUMNS, ADD_WARPS, DOWN_PARTS, GemvTile
from xverse_kernels.types import RoutedTokens

_down_parts = Launcher(down_parts_kernel)
_add_parts = Launcher(add_parts_kernel)


def down_parts(
    h: Tensor,
    routed: RoutedTokens,
    experts: ExpertBlocks,
    out: Tensor,
    *,
    tile: GemvTile | None = None,
    pdl: bool = False,
) -> None:
    """``weight * (down h)`` of every slot to ``out`` fp32 [T, S, H]; zeros without a block.

    Args:
        h: [T * S, I], as `gate_up_each` leaves it.
        routed: ids and weights of the slots.
        experts: blocks of the layer.
        out: written throughout.
        tile: other than that of the table.
        pdl: programmatic dependent launch.

    Raises:
        ValueError: tensors with gaps, or an ``out`` of another shape or dtype.
    """
    weights, scales, bits = block_views(experts)
    require_rows(h, routed.expert_ids, routed.weights)
    tile = tile or DOWN_PARTS[bits]
    layout, (tokens, slots) = experts.layout, routed.expert_ids.shape
    _require_parts(out, (tokens, slots, layout.hidden))
    _down_parts(
        (tokens * slots, layout.hidden // tile.rows),
        (h, routed.expert_ids, routed.weights, experts.table, weights, scales, out),
        {
            "HIDDEN": layout.hidden,
            "WIDTH": layout.width,
            "BLOCK_BYTES": layout.block_bytes,
            "DOWN_BYTES": layout.gate_up_bytes,
            "BITS": bits,
            "ROWS": tile.rows,
            "BLOCK": tile.block,
            "PDL": pdl,
        },
        warps=tile.warps,
        pdl=pdl,
    )


def add_parts(residual: Tensor, parts: Sequence[Tensor], *, pdl: bool = False) -> Tensor:
    """``residual`` [T, H] plus slot after slot of ``parts`` fp32 [T, S, H], in its own dtype.

    Raises:
        ValueError: tensors with gaps, or parts of another shape or dtype.
    """
    tokens, hidden = residual.shape
    slots = parts[0].shape[1]
    require_rows(residual)
    for part in parts:
        _require_parts(part, (tokens, slots, hidden))
    first, *others = parts
    while len(others) > 1:  # exact: all but one are zero
        first = first + others.pop()
    out = torch.empty_like(residual)
    _add_parts(
        (tokens, -(-hidden // ADD_COLUMNS)),
        (residual, first, others[0] if others else first, out),
        {
            "SLOTS": slots,
            "HIDDEN": hidden,
            "BLOCK": ADD_COLUMNS,
            "BOTH": bool(others),
            "PDL": pdl,
        },
        warps=ADD_WARPS,
        pdl=pdl,
    )
    return out


def _require_parts(parts: Tensor, shape: tuple[int, int, int]) -> None:
    require_rows(parts)
    if parts.shape != shape or parts.dtype != torch.float32:
        raise ValueError(f"parts are fp32 {shape}, not {parts.dtype} {tuple(parts.shape)}")
