"""Launching what computes slots apart, what adds them up, and small copies to and from the host."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from xverse_kernels.packing import ExpertBlocks
from xverse_kernels.triton.launch import Launcher, block_views, require_rows
from xverse_kernels.triton.part_kernels import (
    add_parts_kernel,
    copy_small_kernel,
    down_parts_kernel,
)
from xverse_kernels.triton.tiles import (
    ADD_COLUMNS,
    ADD_WARPS,
    COPY_ELEMENTS,
    COPY_WARPS,
    DOWN_PARTS,
    GemvTile,
)
from xverse_kernels.types import Parts, RoutedTokens

_down_parts = Launcher(down_parts_kernel)
_add_parts = Launcher(add_parts_kernel)
_copy_small = Launcher(copy_small_kernel)

MOST_HERE = 2
MOST_COPIES = 5


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


def add_parts(
    residual: Tensor,
    expert_ids: Tensor,
    here: Sequence[Parts],
    rest: Tensor,
    *,
    pdl: bool = False,
) -> Tensor:
    """See `KernelBackend.add_parts`.

    Raises:
        ValueError: tensors with gaps, parts of another shape or dtype, or of more than two.
    """
    tokens, hidden = residual.shape
    slots = expert_ids.shape[1]
    require_rows(residual, expert_ids, *(parts.table for parts in here))
    for values in (*(parts.values for parts in here), rest):
        _require_parts(values, (tokens, slots, hidden))
    if len(here) > MOST_HERE:
        raise ValueError(f"parts of {MOST_HERE} tables at most, not of {len(here)}")
    read = [*here, Parts(rest, expert_ids), Parts(rest, expert_ids)]
    out = torch.empty_like(residual)
    _add_parts(
        (tokens, -(-hidden // ADD_COLUMNS)),
        (residual, expert_ids, *read[0], *read[1], rest, out),
        {
            "SLOTS": slots,
            "HIDDEN": hidden,
            "BLOCK": ADD_COLUMNS,
            "TABLES": len(here),
            "PDL": pdl,
        },
        warps=ADD_WARPS,
        pdl=pdl,
    )
    return out


def copy_small(
    copies: Sequence[tuple[Tensor, Tensor]], device: torch.device, *, pdl: bool = False
) -> None:
    """See `KernelBackend.copy_small`; in one launch on ``device``.

    Raises:
        ValueError: tensors with gaps, pairs of different sizes, or more than five.
    """
    if len(copies) > MOST_COPIES:
        raise ValueError(f"{MOST_COPIES} copies at most, not {len(copies)}")
    for source, target in copies:
        require_rows(source, target)
        if source.numel() != target.numel():
            raise ValueError(f"{source.numel()} elements do not fill {target.numel()}")
    # rows in the middle of a tensor can begin where kernels do not read
    pairs = [(one if one.data_ptr() % 16 == 0 else one.clone(), target) for one, target in copies]
    pairs += [pairs[0]] * (MOST_COPIES - len(pairs))
    longest = max(source.numel() for source, _ in copies)
    _copy_small(
        (-(-longest // COPY_ELEMENTS),),
        (
            *(source for source, _ in pairs),
            *(target for _, target in pairs),
            *(source.numel() for source, _ in pairs),
        ),
        {"COUNT": len(copies), "BLOCK": COPY_ELEMENTS, "PDL": pdl},
        warps=COPY_WARPS,
        pdl=pdl,
        device=device,
    )


def _require_parts(parts: Tensor, shape: tuple[int, int, int]) -> None:
    require_rows(parts)
    if parts.shape != shape or parts.dtype != torch.float32:
        raise ValueError(f"parts are fp32 {shape}, not {parts.dtype} {tuple(parts.shape)}")
