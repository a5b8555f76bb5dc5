"""Launching the router and the experts."""

from __future__ import annotations

import torch
from torch import Tensor

from xverse_kernels.packing import ExpertBlocks
from xverse_kernels.reference import RENORMALISE_EPS
from xverse_kernels.triton.expert_kernels import down_kernel, gate_up_kernel
from xverse_kernels.triton.grouped_kernels import (
    combine_kernel,
    grouped_down_kernel,
    grouped_gate_up_kernel,
    sort_pairs_kernel,
)
from xverse_kernels.triton.launch import Workspace, block_views, padded, require_rows
from xverse_kernels.triton.router_kernels import router_kernel
from xverse_kernels.triton.tiles import (
    DOWN,
    GATE_UP,
    ROUTER_EXPERTS,
    ROUTER_WARPS,
    GemmTile,
    GemvTile,
    grouped_tile,
)
from xverse_kernels.types import RoutedTokens

SORT_CHUNK = 1024
COMBINE_BLOCK = 1024
PLANE_WORDS = 16


def route(
    x: Tensor,
    norm: Tensor,
    eps: float,
    router: Tensor,
    top_k: int,
    shared: int,
    workspace: Workspace,
    *,
    pdl: bool = False,
) -> RoutedTokens:
    """Norm and choose: see `RoutedTokens`.

    Args:
        x: residual stream [T, H].
        norm: [H].
        eps: of the norm.
        router: [E, H] fp32.
        top_k: routed experts a token.
        shared: shared experts, which follow the routed ones.
        workspace: scratch of the device.
        pdl: programmatic dependent launch.
    """
    require_rows(x, norm, router)
    (tokens, hidden), experts = x.shape, router.shape[0]
    slots, device = top_k + shared, x.device
    result = RoutedTokens(
        normed=torch.empty_like(x),
        weights=torch.empty(tokens, slots, dtype=x.dtype, device=device),
        expert_ids=torch.empty(tokens, slots, dtype=torch.int32, device=device),
        logits=torch.empty(tokens, experts, dtype=torch.float32, device=device),
    )
    router_kernel[(tokens, -(-experts // ROUTER_EXPERTS))](
        x,
        norm,
        router,
        result.normed,
        result.logits,
        result.expert_ids,
        result.weights,
        workspace.counters,
        eps,
        RENORMALISE_EPS,
        HIDDEN=hidden,
        HIDDEN_PADDED=padded(hidden),
        EXPERTS=experts,
        EXPERTS_PADDED=padded(experts),
        TOP_K=top_k,
        SHARED=shared,
        SLOTS_PADDED=padded(slots),
        TILE=ROUTER_EXPERTS,
        PDL=pdl,
        num_warps=ROUTER_WARPS,
        launch_pdl=pdl,
    )
    return result


def gate_up_each(
    routed: RoutedTokens,
    experts: ExpertBlocks,
    *,
    tile: GemvTile | None = None,
    pdl: bool = False,
) -> Tensor:
    """``silu(gate x) * (up x)`` for every slot of every token: [T * S, I]."""
    weights, scales, bits = block_views(experts)
    tile = tile or GATE_UP[bits]
    layout, (tokens, slots) = experts.layout, routed.expert_ids.shape
    h = torch.empty(
        tokens * slots, layout.width, dtype=routed.normed.dtype, device=routed.normed.device
    )
    gate_up_kernel[(tokens * slots, layout.width // tile.rows)](
        routed.normed,
        routed.expert_ids,
        experts.table,
        weights,
        scales,
        h,
        SLOTS=slots,
        HIDDEN=layout.hidden,
        WIDTH=layout.width,
        BLOCK_BYTES=layout.block_bytes,
        BITS=bits,
        ROWS=tile.rows,
        BLOCK=tile.block,
        PDL=pdl,
        num_warps=tile.warps,
        launch_pdl=pdl,
    )
    return h


def down_each(
    h: Tensor,
    routed: RoutedTokens,
    experts: ExpertBlocks,
    residual: Tensor,
    workspace: Workspace,
    *,
    tile: GemvTile | None = None,
    pdl: bool = False,
) -> Tensor:
    """``residual + sum of weight * (down h)`` over a token's slots: [T, H]."""
    weights, scales, bits = block_views(experts)
    require_rows(residual)
    tile = tile or DOWN[bits]
    layout, (tokens, slots) = experts.layout, routed.expert_ids.shape
    out = torch.empty_like(residual)
    tiles = layout.hidden // tile.rows
    splits = min(tile.splits, slots)
    down_kernel[(tokens, tiles, splits)](
        h,
        routed.expert_ids,
        routed.weights,
        experts.table,
        weights,
        scales,
        residual,
        out,
        workspace.partials(tokens * tiles * splits * tile.rows),
        workspace.counters,
        SLOTS=slots,
        HIDDEN=layout.hidden,
        WIDTH=layout.width,
        BLOCK_BYTES=layout.block_bytes,
        DOWN_BYTES=layout.gate_up_bytes,
        BITS=bits,
        ROWS=tile.rows,
        BLOCK=tile.block,
        SPLITS=splits,
        PDL=pdl,
        num_warps=tile.warps,
        launch_pdl=pdl,
    )
    return out


def experts_grouped(
    routed: RoutedTokens,
    experts: ExpertBlocks,
    residual: Tensor,
    *,
    tile: GemmTile | None = None,
) -> Tensor:
    """``residual + weighted sum of the experts`` by matrix products over sorted pairs: [T, H]."""
    import triton.language as tl

    weights, scales, bits = block_views(experts)
    require_rows(residual)
    layout, (tokens, slots) = experts.layout, routed.expert_ids.shape
    device, dtype, pairs = residual.device, routed.normed.dtype, tokens * slots
    count = experts.table.shape[0]
    tile = tile or grouped_tile(bits, pairs / count)
    order = torch.empty(pairs, dtype=torch.int32, device=device)
    counts, starts = torch.empty(2, count, dtype=torch.int32, device=device)
    sort_pairs_kernel[(count,)](
        routed.expert_ids, experts.table, order, counts, starts, pairs, CHUNK=SORT_CHUNK
    )
    x = routed.normed if bits > 8 else plane_order(routed.normed, bits)
    width = layout.width if bits > 8 else _plane_width(layout.width, bits)
    empty = torch.empty if width == layout.width else torch.zeros
    h = empty(pairs, width, dtype=dtype, device=device)
    tiles = min(pairs, pairs // tile.m + count)
    shared = {
        "EXPERTS": count,
        "EXPERTS_PADDED": padded(count),
        "BLOCK_BYTES": layout.block_bytes,
        "BITS": bits,
        "BLOCK_M": tile.m,
        "BLOCK_N": tile.n,
        "BLOCK_K": tile.k,
        "DOT": tl.float32 if dtype == torch.float32 else getattr(tl, str(dtype)[6:]),
        "num_warps": tile.warps,
        "num_stages": tile.stages,
    }
    grouped_gate_up_kernel[(tiles * -(-layout.width // tile.n),)](
        x,
        order,
        counts,
        starts,
        experts.table,
        weights,
        scales,
        h,
        SLOTS=slots,
        HIDDEN=layout.hidden,
        HIDDEN_PADDED=x.shape[1],
        WIDTH=layout.width,
        WIDTH_PADDED=width,
        **shared,
    )
    parts = torch.empty(pairs, layout.hidden, dtype=dtype, device=device)
    grouped_down_kernel[(tiles * -(-layout.hidden // tile.n),)](
        h,
        order,
        counts,
        starts,
        experts.table,
        weights,
        scales,
        parts,
        HIDDEN=layout.hidden,
        WIDTH=layout.width,
        WIDTH_PADDED=width,
        DOWN_BYTES=layout.gate_up_bytes,
        **shared,
    )
    out = torch.empty_like(residual)
    combine_kernel[(tokens, -(-layout.hidden // COMBINE_BLOCK))](
        parts,
        routed.expert_ids,
        routed.weights,
        experts.table,
        residual,
        out,
        SLOTS=slots,
        HIDDEN=layout.hidden,
        BLOCK=COMBINE_BLOCK,
    )
    return out


def plane_order(x: Tensor, bits: int) -> Tensor:
    """Columns in the order in which the products of packed weights take them, padded with zeros.

    Every 16 words' columns: first those of the words' first integers, then of the second ones.
    """
    tokens, columns = x.shape
    per_word, width = 32 // bits, _plane_width(columns, bits)
    if width != columns:
        x = torch.nn.functional.pad(x, (0, width - columns))
    words = x.view(tokens, -1, PLANE_WORDS, per_word)
    if bits == 4:  # nibbles hold the even columns of a word first
        words = torch.cat((words[..., ::2], words[..., 1::2]), dim=-1)
    return words.transpose(2, 3).reshape(tokens, width)


def _plane_width(columns: int, bits: int) -> int:
    chunk = PLANE_WORDS * 32 // bits
    return -(-columns // chunk) * chunk
