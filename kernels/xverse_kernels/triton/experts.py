"""Launching the router and the experts."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
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
from xverse_kernels.triton.launch import (
    Launcher,
    Workspace,
    block_views,
    matrix_unit,
    padded,
    require_rows,
    triton_dtype,
)
from xverse_kernels.triton.router_kernels import choose_kernel, router_kernel
from xverse_kernels.triton.tiles import (
    DOWN,
    GATE_UP,
    ROUTER_EXPERTS,
    ROUTER_TOKENS,
    ROUTER_WARPS,
    GemmTile,
    GemvTile,
    grouped_tile,
)
from xverse_kernels.types import RoutedTokens

SORT_CHUNK = 1024
COMBINE_BLOCK = 1024
PLANE_WORDS = 16
_router = Launcher(router_kernel)
_choose = Launcher(choose_kernel)
_gate_up = Launcher(gate_up_kernel)
_down = Launcher(down_kernel)
_sort_pairs = Launcher(sort_pairs_kernel)
_grouped_gate_up = Launcher(grouped_gate_up_kernel)
_grouped_down = Launcher(grouped_down_kernel)
_combine = Launcher(combine_kernel)


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
    weights = torch.empty(tokens, slots, dtype=norm.dtype, device=device)
    expert_ids = torch.empty(tokens, slots, dtype=torch.int32, device=device)
    sizes = {
        "EXPERTS": experts,
        "EXPERTS_PADDED": padded(experts),
        "TOP_K": top_k,
        "SHARED": shared,
        "SLOTS_PADDED": padded(slots),
    }
    if tokens > ROUTER_TOKENS:
        normed = normed_state(x, norm, eps)
        logits = F.linear(normed.float(), router)
        _choose((tokens,), (logits, expert_ids, weights, RENORMALISE_EPS), sizes, warps=1)
        return RoutedTokens(normed, weights, expert_ids, logits)
    normed = torch.empty(tokens, hidden, dtype=norm.dtype, device=device)
    logits = torch.empty(tokens, experts, dtype=torch.float32, device=device)
    _router(
        (tokens, -(-experts // ROUTER_EXPERTS)),
        (
            x,
            norm,
            router,
            normed,
            logits,
            expert_ids,
            weights,
            workspace.zeros(tokens),
            eps,
            RENORMALISE_EPS,
        ),
        {
            "HIDDEN": hidden,
            "HIDDEN_PADDED": padded(hidden),
            **sizes,
            "TILE": ROUTER_EXPERTS,
            "PDL": pdl,
        },
        warps=ROUTER_WARPS,
        pdl=pdl,
    )
    return RoutedTokens(normed, weights, expert_ids, logits)


def normed_state(x: Tensor, norm: Tensor, eps: float) -> Tensor:
    """The norm of a residual stream that may be wider, in the dtype of the norm's weight."""
    return F.rms_norm(x, x.shape[-1:], norm.to(x.dtype), eps).to(norm.dtype)


def gate_up_each(
    routed: RoutedTokens,
    experts: ExpertBlocks,
    *,
    tile: GemvTile | None = None,
    pdl: bool = False,
) -> Tensor:
    """``silu(gate x) * (up x)`` for every slot of every token: [T * S, I]."""
    weights, scales, bits = block_views(experts)
    require_rows(routed.normed, routed.expert_ids)
    tile = tile or GATE_UP[bits]
    layout, (tokens, slots) = experts.layout, routed.expert_ids.shape
    h = torch.empty(
        tokens * slots, layout.width, dtype=routed.normed.dtype, device=routed.normed.device
    )
    _gate_up(
        (tokens * slots, layout.width // tile.rows),
        (routed.normed, routed.expert_ids, experts.table, weights, scales, h),
        {
            "SLOTS": slots,
            "HIDDEN": layout.hidden,
            "WIDTH": layout.width,
            "BLOCK_BYTES": layout.block_bytes,
            "BITS": bits,
            "ROWS": tile.rows,
            "BLOCK": tile.block,
            "PDL": pdl,
        },
        warps=tile.warps,
        pdl=pdl,
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
    require_rows(h, routed.expert_ids, routed.weights, residual)
    tile = tile or DOWN[bits]
    layout, (tokens, slots) = experts.layout, routed.expert_ids.shape
    out = torch.empty_like(residual)
    tiles = layout.hidden // tile.rows
    splits = min(tile.splits, slots)
    _down(
        (tokens, tiles, splits),
        (
            h,
            routed.expert_ids,
            routed.weights,
            experts.table,
            weights,
            scales,
            residual,
            out,
            workspace.partials(tokens * tiles * splits * tile.rows),
            workspace.zeros(tokens * tiles if splits > 1 else 0),
        ),
        {
            "SLOTS": slots,
            "HIDDEN": layout.hidden,
            "WIDTH": layout.width,
            "BLOCK_BYTES": layout.block_bytes,
            "DOWN_BYTES": layout.gate_up_bytes,
            "BITS": bits,
            "ROWS": tile.rows,
            "BLOCK": tile.block,
            "SPLITS": splits,
            "PDL": pdl,
        },
        warps=tile.warps,
        pdl=pdl,
    )
    return out


class SortedPairs(NamedTuple):
    """Pairs (token, slot) by expert: ``order`` int32 [T * S], of which those whose expert has no
    block fill the end with anything; ``counts`` and ``starts`` int32 [experts]."""

    order: Tensor
    counts: Tensor
    starts: Tensor


def sort_pairs(routed: RoutedTokens, experts: ExpertBlocks) -> SortedPairs:
    """Sort a layer's pairs on the device; each expert's stay in order."""
    pairs, count = routed.expert_ids.numel(), experts.table.shape[0]
    device = experts.table.device
    order = torch.empty(pairs, dtype=torch.int32, device=device)
    counts = torch.empty(count, dtype=torch.int32, device=device)
    starts = torch.empty_like(counts)
    _sort_pairs(
        (count,),
        (routed.expert_ids, experts.table, order, counts, starts, pairs),
        {"CHUNK": SORT_CHUNK},
    )
    return SortedPairs(order, counts, starts)


def experts_grouped(
    routed: RoutedTokens,
    experts: ExpertBlocks,
    residual: Tensor,
    *,
    tile: GemmTile | None = None,
) -> Tensor:
    """``residual + weighted sum of the experts`` by matrix products over sorted pairs: [T, H]."""
    weights, scales, bits = block_views(experts)
    require_rows(routed.normed, routed.expert_ids, routed.weights, residual)
    layout, (tokens, slots) = experts.layout, routed.expert_ids.shape
    device, dtype, pairs = residual.device, routed.normed.dtype, tokens * slots
    count = experts.table.shape[0]
    tile = tile or grouped_tile(bits, pairs / count, matrix_unit(device))
    x = routed.normed if bits > 8 else plane_order(routed.normed, bits)
    width = layout.width if bits > 8 else _plane_width(layout.width, bits)
    empty = torch.empty if width == layout.width else torch.zeros
    h = empty(pairs, width, dtype=dtype, device=device)
    tiles = min(pairs, pairs // tile.m + count)
    dot = triton_dtype(dtype)
    sorted_pairs = (*sort_pairs(routed, experts), experts.table, weights, scales)
    of_experts = {"EXPERTS": count, "EXPERTS_PADDED": padded(count)}
    gate_rows = tile.n // 2  # and as many rows of up
    _grouped_gate_up(
        (tiles * -(-layout.width // gate_rows),),
        (x, *sorted_pairs, h),
        {
            **of_experts,
            "SLOTS": slots,
            "HIDDEN": layout.hidden,
            "HIDDEN_PADDED": x.shape[1],
            "WIDTH": layout.width,
            "WIDTH_PADDED": width,
            "BLOCK_BYTES": layout.block_bytes,
            "BITS": bits,
            "BLOCK_M": tile.m,
            "BLOCK_N": gate_rows,
            "BLOCK_K": tile.k,
            "DOT": dot,
        },
        warps=tile.warps,
        stages=tile.stages,
    )
    parts = torch.empty(pairs, layout.hidden, dtype=dtype, device=device)
    _grouped_down(
        (tiles * -(-layout.hidden // tile.n),),
        (h, *sorted_pairs, parts),
        {
            **of_experts,
            "HIDDEN": layout.hidden,
            "WIDTH": layout.width,
            "WIDTH_PADDED": width,
            "BLOCK_BYTES": layout.block_bytes,
            "DOWN_BYTES": layout.gate_up_bytes,
            "BITS": bits,
            "BLOCK_M": tile.m,
            "BLOCK_N": tile.n,
            "BLOCK_K": tile.k,
            "DOT": dot,
        },
        warps=tile.warps,
        stages=tile.stages,
    )
    out = torch.empty_like(residual)
    _combine(
        (tokens, -(-layout.hidden // COMBINE_BLOCK)),
        (parts, routed.expert_ids, routed.weights, experts.table, residual, out),
        {"SLOTS": slots, "HIDDEN": layout.hidden, "BLOCK": COMBINE_BLOCK},
    )
    return out


def plane_order(x: Tensor, bits: int) -> Tensor:
    """Columns in the order in which the products of packed weights take them, padded with zeros.

    Every 16 words' columns: first those of the words' first integers, then of the second ones.
    """
    tokens, columns = x.shape
    per_word, width = 32 // bits, _plane_width(columns, bits)
    if width != columns:
        x = F.pad(x, (0, width - columns))
    words = x.view(tokens, -1, PLANE_WORDS, per_word)
    if bits == 4:  # nibbles hold the even columns of a word first
        words = torch.cat((words[..., ::2], words[..., 1::2]), dim=-1)
    return words.transpose(2, 3).reshape(tokens, width)


def _plane_width(columns: int, bits: int) -> int:
    chunk = PLANE_WORDS * 32 // bits
    return -(-columns // chunk) * chunk
