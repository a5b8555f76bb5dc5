"""Launching attention."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right

from xverse_kernels.triton.attention_kernels import (
    decode_attention_kernel,
    rotate_and_cache_kernel,
)
from xverse_kernels.triton.launch import Workspace, padded, require_rows
from xverse_kernels.triton.tiles import ATTENTION_BLOCK, ATTENTION_WARPS


def attend_each(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    keys: Tensor,
    values: Tensor,
    positions: Tensor,
    sequences: Tensor,
    workspace: Workspace,
    *,
    splits: int,
    pdl: bool = False,
) -> Tensor:
    """One new token of each of T sequences: rotate, write to the cache, attend.

    Args:
        qkv: [T, (heads + 2 kv_heads) * head_dim].
        cos: fp32 [positions, head_dim].
        sin: like cos.
        keys: [sequences, kv_heads, capacity, head_dim], written at each token's position.
        values: like keys.
        positions: int32 [T], on the device.
        sequences: int32 [T], on the device; no sequence twice.
        workspace: scratch of the device.
        splits: into how many parts the past is cut, a power of two.
        pdl: programmatic dependent launch.

    Returns:
        [T, heads * head_dim].
    """
    require_rows(qkv, cos, sin, keys, values)
    _, kv_heads, capacity, dim = keys.shape
    tokens = qkv.shape[0]
    heads = qkv.shape[1] // dim - 2 * kv_heads
    out = torch.empty(tokens, heads * dim, dtype=qkv.dtype, device=qkv.device)
    dim_padded = padded(dim)
    decode_attention_kernel[(tokens, heads, splits)](
        qkv,
        positions,
        sequences,
        cos,
        sin,
        keys,
        values,
        out,
        workspace.partials(tokens * heads * splits * (dim_padded + 2)),
        workspace.counters,
        capacity,
        HEADS=heads,
        KV_HEADS=kv_heads,
        DIM=dim,
        DIM_PADDED=dim_padded,
        BLOCK=ATTENTION_BLOCK,
        SPLITS=splits,
        PDL=pdl,
        num_warps=ATTENTION_WARPS,
        launch_pdl=pdl,
    )
    return out


def attend_span(
    qkv: Tensor, cos: Tensor, sin: Tensor, keys: Tensor, values: Tensor, past: int
) -> Tensor:
    """T consecutive tokens of one sequence, ``past`` tokens after its start.

    Args:
        qkv: [T, (heads + 2 kv_heads) * head_dim].
        cos: fp32 [positions, head_dim].
        sin: like cos.
        keys: the sequence's cache [kv_heads, capacity, head_dim], written from ``past`` on.
        values: like keys.
        past: cached tokens.

    Returns:
        [T, heads * head_dim].
    """
    require_rows(qkv, cos, sin, keys, values)
    kv_heads, capacity, dim = keys.shape
    tokens = qkv.shape[0]
    heads = qkv.shape[1] // dim - 2 * kv_heads
    q = torch.empty(heads, tokens, dim, dtype=qkv.dtype, device=qkv.device)
    rotate_and_cache_kernel[(tokens, heads + 2 * kv_heads)](
        qkv,
        cos,
        sin,
        q,
        keys,
        values,
        past,
        tokens,
        capacity,
        HEADS=heads,
        KV_HEADS=kv_heads,
        DIM=dim,
        DIM_PADDED=padded(dim),
        num_warps=1,
    )
    length = past + tokens
    mask = causal_lower_right(tokens, length) if past and tokens > 1 else None
    mixed = F.scaled_dot_product_attention(
        q.unsqueeze(0),
        keys[None, :, :length],
        values[None, :, :length],
        attn_mask=mask,
        is_causal=past == 0 and tokens > 1,
        enable_gqa=heads != kv_heads,
    )
    return mixed[0].transpose(0, 1).reshape(tokens, heads * dim)
