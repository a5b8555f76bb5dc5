"""Kernels against fp64 on fresh random inputs: no time is taken of a wrong result.

References are computed on the CPU, but for attention, which is where its cache is.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from xverse_kernels import reference
from xverse_kernels.kv_rows import Int8Rows, Rows, read_rows, to_int8
from xverse_kernels.packing import ExpertBlocks, PackedMatrix
from xverse_kernels.types import Norm, Rotary, RoutedTokens, SwigluWeights

TOLERANCE = 1e-2
LOGIT_TOLERANCE = 1e-5  # of sums in fp32
Check = Callable[[Any], None]  # raises ValueError
Dense = Callable[[int], SwigluWeights]  # an expert's weights in fp32, which hold all of them


def relative_error(found: Tensor, expected: Tensor) -> float:
    """‖found - expected‖ / ‖expected‖ in fp64; infinite if anything is not finite."""
    found, expected = found.double().cpu(), expected.double().cpu()
    if not bool(torch.isfinite(found).all()):
        return float("inf")
    return float((found - expected).norm() / expected.norm())


def near(expected: Tensor, tolerance: float = TOLERANCE) -> Check:
    """Whether a result is what fp64 gave."""

    def check(found: Tensor) -> None:
        if found.shape != expected.shape:
            raise ValueError(f"shape {tuple(found.shape)}, not {tuple(expected.shape)}")
        error = relative_error(found, expected)
        if not error < tolerance:
            raise ValueError(f"relative error {error:.3g}")

    return check


def norm_in_fp64(x: Tensor, norm: Norm) -> Tensor:
    """[T, H] on the CPU."""
    wide = x.double().cpu()
    scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + norm.eps)
    return wide * scale * norm.weight.double().cpu()


def linear_in_fp64(
    x: Tensor,
    weight: Tensor | PackedMatrix,
    norm: Norm | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """[T, N] on the CPU."""
    if isinstance(weight, PackedMatrix):
        packed = PackedMatrix(weight.data.cpu(), weight.rows, weight.columns, weight.form)
        dense = packed.to_dense(torch.float32).double()
    else:
        dense = weight.cpu().double()
    wide = x.double().cpu() if norm is None else norm_in_fp64(x, norm)
    y = wide @ dense.T
    return y if residual is None else y + residual.double().cpu()


def routed_rightly(x: Tensor, norm: Norm, router: Tensor, top_k: int, shared: int) -> Check:
    """Whether `RoutedTokens` are what a router gives.

    Two logits that differ by less than the rounding of fp32 sums may change places, so it is not
    ids that are compared but what they reach.
    """
    expected = norm_in_fp64(x, norm)

    def check(found: RoutedTokens) -> None:
        near(expected)(found.normed)
        logits = found.normed.double().cpu() @ router.double().cpu().T
        near(logits, LOGIT_TOLERANCE)(found.logits)
        (tokens, experts), ids = logits.shape, found.expert_ids.long().cpu()
        slots = torch.arange(experts, experts + shared).expand(tokens, shared)
        if ids.shape != (tokens, top_k + shared) or not torch.equal(ids[:, top_k:], slots):
            raise ValueError("shared experts are not in the last slots")
        chosen = ids[:, :top_k]
        once = all(len(set(row)) == top_k for row in chosen.tolist())
        if not once or chosen.min() < 0 or chosen.max() >= experts:
            raise ValueError(f"chosen were {chosen.tolist()}")
        missed = (logits.gather(1, chosen) - logits.topk(top_k).values).abs().max()
        if missed > LOGIT_TOLERANCE * logits.abs().max():
            raise ValueError(f"a chosen logit is {missed:.3g} from the one of its place")
        likely = logits.softmax(-1).gather(1, chosen)
        weights = likely / (likely.sum(-1, keepdim=True) + reference.RENORMALISE_EPS)
        near(torch.cat((weights, torch.ones(tokens, shared)), dim=1))(found.weights)

    return check


def dense_experts(blocks: ExpertBlocks) -> Dense:
    """The experts of blocks that lie in order, each unpacked once."""

    return cache(lambda expert: blocks.layout.unpack(blocks.blocks[expert].cpu(), torch.float32))


def gate_up_in_fp64(dense: Dense, routed: RoutedTokens) -> Tensor:
    """What every slot's expert has between its products: [T, S, I]."""
    x, ids = routed.normed.double().cpu(), routed.expert_ids.cpu()
    width = dense(int(ids[0, 0])).gate.shape[0]
    out = torch.zeros(*ids.shape, width, dtype=torch.float64)
    for expert in ids.unique().tolist():
        weights, (tokens, slots) = dense(expert), (ids == expert).nonzero(as_tuple=True)
        gate, up = weights.gate.double(), weights.up.double()
        out[tokens, slots] = F.silu(x[tokens] @ gate.T) * (x[tokens] @ up.T)
    return out


def down_in_fp64(dense: Dense, routed: RoutedTokens, h: Tensor) -> Tensor:
    """What every slot adds, its weight applied: [T, S, H]; ``h`` [T, S, I]."""
    h, ids = h.double().cpu(), routed.expert_ids.cpu()
    out = torch.zeros(*ids.shape, routed.normed.shape[1], dtype=torch.float64)
    for expert in ids.unique().tolist():
        tokens, slots = (ids == expert).nonzero(as_tuple=True)
        out[tokens, slots] = h[tokens, slots] @ dense(expert).down.double().T
    return out * routed.weights.double().cpu().unsqueeze(-1)


def experts_in_fp64(
    blocks: ExpertBlocks, routed: RoutedTokens, dense: Dense | None = None
) -> Tensor:
    """What the experts add, [T, H]; blocks lie in order."""
    dense = dense or dense_experts(blocks)
    return down_in_fp64(dense, routed, gate_up_in_fp64(dense, routed)).sum(1)


def experts_near(
    blocks: ExpertBlocks, routed: RoutedTokens, residual: Tensor, dense: Dense
) -> Check:
    """Whether a residual stream with the experts' sum is right: its first, middle and last token.
    All others are looked at for what is not finite."""
    last = len(residual) - 1
    rows = sorted({0, last // 2, last})
    some = routed._replace(
        normed=routed.normed[rows], weights=routed.weights[rows], expert_ids=routed.expert_ids[rows]
    )
    expected = residual[rows].double().cpu() + experts_in_fp64(blocks, some, dense)

    def check(found: Tensor) -> None:
        if found.shape != residual.shape or not bool(torch.isfinite(found).all()):
            raise ValueError("a result of another shape, or not finite")
        near(expected)(found[rows])

    return check


def causal_in_fp64(q: Tensor, k: Tensor, v: Tensor, past: int) -> Tensor:
    """Attention of rotated queries [heads, T, D] over [kv_heads, past + T, D]: [T, heads * D]."""
    (heads, tokens, dim), kv_heads = q.shape, k.shape[0]
    grouped = q.double().reshape(kv_heads, heads // kv_heads * tokens, dim)
    scores = (grouped @ k.double().transpose(1, 2) * dim**-0.5).view(heads, tokens, -1)
    place = torch.arange(past + tokens, device=q.device)
    scores = scores.masked_fill(place > place[past:, None], float("-inf")).softmax(-1)
    mixed = scores.view(kv_heads, -1, past + tokens) @ v.double()
    return mixed.view(heads, tokens, dim).transpose(0, 1).reshape(tokens, heads * dim)


def attention_in_fp64(
    qkv: Tensor, rotary: Rotary, keys: Rows, values: Rows, sequence: int, past: int
) -> Tensor:
    """What `KernelBackend.attend_span` gives: [T, heads * D]. The cache is read, not written."""
    tokens, (_, kv_heads, _, dim) = qkv.shape[0], keys.shape
    heads = qkv.double().view(tokens, -1, dim)
    cos, sin = (one[past : past + tokens] for one in rotary)
    turned = reference.rope(heads[:, :-kv_heads], cos, sin).transpose(0, 1)
    new_values, seen = heads[:, -kv_heads:].transpose(0, 1), (sequence, slice(None), slice(past))
    k, v = (
        torch.cat((read_rows(rows, seen, torch.float64), _as_kept(new, rows)), dim=1)
        for rows, new in ((keys, turned[-kv_heads:]), (values, new_values))
    )
    return causal_in_fp64(turned[:-kv_heads], k, v, past)


def kept_in_fp64(qkv: Tensor, rotary: Rotary, keys: Rows, past: int) -> tuple[Tensor, Tensor]:
    """Keys and values [kv_heads, T, D] that `attend_span` leaves in a cache like ``keys``."""
    tokens, (_, kv_heads, _, dim) = qkv.shape[0], keys.shape
    heads = qkv.double().view(tokens, -1, dim)[:, -2 * kv_heads :]
    cos, sin = (one[past : past + tokens] for one in rotary)
    new = reference.rope(heads[:, :kv_heads], cos, sin), heads[:, kv_heads:]
    k, v = (_as_kept(one.transpose(0, 1), keys) for one in new)
    return k, v


def _as_kept(new: Tensor, rows: Rows) -> Tensor:
    """In int8 the newest rows too are attended to as the cache has them."""
    if not isinstance(rows, Int8Rows):
        return new
    integers, scales = to_int8(new)
    return integers.double() * scales.double().unsqueeze(-1)
