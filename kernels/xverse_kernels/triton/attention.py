"""Launching attention."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right

from xverse_kernels.kv_rows import Int8Rows, Rows, read_rows
from xverse_kernels.triton.attention_kernels import (
    decode_attention_kernel,
    rotate_and_cache_kernel,
)
from xverse_kernels.triton.launch import (
    Launcher,
    Workspace,
    abilities,
    padded,
    require_rows,
    triton_dtype,
)
from xverse_kernels.triton.prefill_kernels import prefill_attention_kernel
from xverse_kernels.triton.tiles import (
    PREFILL_ATTENTION,
    PREFILL_ATTENTION_INT8,
    GemmTile,
    attention_registers,
    attention_tile,
)

ROTATE_HEADS = 16
MOST_ADDRESSED = 2**31 - 1  # numbers of a tensor that decode attention reaches
_decode_attention = Launcher(decode_attention_kernel)
_rotate_and_cache = Launcher(rotate_and_cache_kernel)
_prefill_attention = Launcher(prefill_attention_kernel)


def attend_each(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    keys: Rows,
    values: Rows,
    positions: Tensor,
    sequences: Tensor,
    workspace: Workspace,
    *,
    longest: int,
    pdl: bool = False,
    tile: tuple[int, int, int] | None = None,
) -> Tensor:
    """One new token of each of T sequences: rotate, write to the cache, attend.

    Args:
        qkv: [T, (heads + 2 kv_heads) * head_dim].
        cos: fp32 [positions, head_dim].
        sin: like cos.
        keys: [sequences, kv_heads, capacity, head_dim], written at each token's position; int8
            with scales or the dtype of qkv.
        values: like keys.
        positions: int32 [T], on the device.
        sequences: int32 [T], on the device; no sequence twice.
        workspace: scratch of the device.
        longest: at least every position; decides into how many parts the past is cut.
        pdl: programmatic dependent launch.
        tile: other than that of `attention_tile`.

    Returns:
        [T, heads * head_dim].

    Raises:
        ValueError: more tokens than the kernel has addresses for: thousands.
    """
    (k, k_scales), (v, v_scales) = _parts_of(keys), _parts_of(values)
    require_rows(qkv, cos, sin, positions, sequences, k, v, k_scales, v_scales)
    _, kv_heads, capacity, dim = keys.shape
    tokens = qkv.shape[0]
    heads = qkv.shape[1] // dim - 2 * kv_heads
    block, warps, splits = tile or attention_tile(longest)
    # In 64 bits these would take registers that the loop over the past has no more of.
    most = MOST_ADDRESSED // max(qkv.shape[1], heads * splits * (dim + 2))
    if tokens > most:
        raise ValueError(f"{tokens} sequences in one step: {most} at most, so take fewer at once")
    out = torch.empty(tokens, heads * dim, dtype=qkv.dtype, device=qkv.device)
    per, words = chunk_of(dim, k.dtype)
    _decode_attention(
        (tokens, heads, splits),
        (
            qkv,
            positions,
            sequences,
            cos,
            sin,
            k,
            v,
            k_scales,
            v_scales,
            out,
            workspace.partials(tokens * heads * splits * (dim + 2)),
            workspace.zeros(tokens * heads if splits > 1 else 0),
            capacity,
        ),
        {
            "HEADS": heads,
            "KV_HEADS": kv_heads,
            "DIM": dim,
            "DIM_PADDED": padded(dim),
            "PER": per,
            "WORDS": words,
            "BLOCK": block,
            "SPLITS": splits,
            "INT8": k.dtype == torch.int8,
            "PDL": pdl,
        },
        warps=warps,
        registers=attention_registers(abilities(qkv.device).capability),
        pdl=pdl,
    )
    return out


def attend_span(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    keys: Rows,
    values: Rows,
    sequence: int,
    past: int,
    *,
    by_torch: bool = False,
) -> Tensor:
    """T consecutive tokens of one sequence, ``past`` tokens after its start.

    Args:
        qkv: [T, (heads + 2 kv_heads) * head_dim].
        cos: fp32 [positions, head_dim].
        sin: like cos.
        keys: as for `attend_each`, written from ``past`` on.
        values: like keys.
        sequence: whose cache it is.
        past: cached tokens.
        by_torch: let torch attend.

    Returns:
        [T, heads * head_dim].
    """
    (k, k_scales), (v, v_scales) = _parts_of(keys), _parts_of(values)
    require_rows(qkv, cos, sin, k, v, k_scales, v_scales)
    _, kv_heads, capacity, dim = keys.shape
    tokens = qkv.shape[0]
    heads = qkv.shape[1] // dim - 2 * kv_heads
    q = torch.empty(heads, tokens, dim, dtype=qkv.dtype, device=qkv.device)
    _rotate_and_cache(
        (tokens, -(-(heads + 2 * kv_heads) // ROTATE_HEADS)),
        (qkv, cos, sin, q, k, v, k_scales, v_scales, sequence, past, tokens, capacity),
        {
            "HEADS": heads,
            "KV_HEADS": kv_heads,
            "DIM": dim,
            "DIM_PADDED": padded(dim),
            "BLOCK": ROTATE_HEADS,
            "INT8": k.dtype == torch.int8,
        },
    )
    if by_torch:
        return torch_attention(q, keys, values, sequence, past)
    return prefill_attention(q, keys, values, sequence, past)


def prefill_attention(
    q: Tensor, keys: Rows, values: Rows, sequence: int, past: int, *, tile: GemmTile | None = None
) -> Tensor:
    """Causal attention of rotated queries [heads, T, head_dim] over a cache that has their keys.

    Returns:
        [T, heads * head_dim].
    """
    heads, tokens, dim = q.shape
    _, kv_heads, capacity, _ = keys.shape
    (k, k_scales), (v, v_scales) = _parts_of(keys), _parts_of(values)
    require_rows(q, k, v, k_scales, v_scales)
    tiles = PREFILL_ATTENTION_INT8 if k.dtype == torch.int8 else PREFILL_ATTENTION
    tile = tile or tiles[abilities(q.device).unit]
    wide = padded(dim) if padded(dim) == dim else padded(dim) // 2
    rest = dim - wide
    narrow = max(16, padded(rest)) if rest else 0
    out = torch.empty(tokens, heads * dim, dtype=q.dtype, device=q.device)
    _prefill_attention(
        (-(-tokens // tile.m), heads),
        (q, k, v, k_scales, v_scales, out, sequence, past, tokens, capacity),
        {
            "HEADS": heads,
            "KV_HEADS": kv_heads,
            "DIM": dim,
            "WIDE": max(16, wide),
            "NARROW": narrow,
            "BLOCK_M": tile.m,
            "BLOCK_N": tile.n,
            "INT8": k.dtype == torch.int8,
            "DOT": triton_dtype(q.dtype),
        },
        warps=tile.warps,
        stages=tile.stages,
    )
    return out


def torch_attention(q: Tensor, keys: Rows, values: Rows, sequence: int, past: int) -> Tensor:
    """Like `prefill_attention`, by the fastest of torch's own kernels."""
    heads, tokens, dim = q.shape
    length = past + tokens
    mask = causal_lower_right(tokens, length) if past and tokens > 1 else None
    seen = (sequence, slice(None), slice(length))
    mixed = F.scaled_dot_product_attention(
        q.unsqueeze(0),
        read_rows(keys, seen, q.dtype)[None],
        read_rows(values, seen, q.dtype)[None],
        attn_mask=mask,
        is_causal=past == 0 and tokens > 1,
        enable_gqa=heads != keys.shape[1],
    )
    return mixed[0].transpose(0, 1).reshape(tokens, heads * dim)


def chunk_of(dim: int, dtype: torch.dtype) -> tuple[int, int]:
    """(elements a word, words a chunk) in which decoding reads a cached head of ``dim`` elements.

    The largest power of two that divides a head, up to 64 bytes: a head of 80 takes two threads of
    16 bytes each in bf16, and five chunks.

    Raises:
        ValueError: int8 heads that are not a multiple of 4.
    """
    per = {torch.int8: 4, torch.bfloat16: 2}.get(dtype, 1)
    if dim % per:
        raise ValueError(f"a cache of {dtype} takes heads of a multiple of {per}, not {dim}")
    words = dim // per
    return per, min(words & -words, 64 // (per * dtype.itemsize))


def _parts_of(rows: Rows) -> tuple[Tensor, Tensor]:
    """Data and scales; plain rows stand for the scales that they do not have."""
    return rows if isinstance(rows, Int8Rows) else (rows, rows)
