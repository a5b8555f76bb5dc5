"""Every operation of the XVERSE models in plain torch: the oracle.

Other backends are measured against these functions, so this file changes only when the meaning of
an operation changes. Formulas are those of the vendor's published model, with one deliberate
difference: the weighted sum over experts is accumulated in fp32 in ascending order of expert id,
whatever the activation dtype, so that it does not depend on how tokens are split into calls.

Shape notes: T tokens of this call, L positions in the cache, H hidden width, I expert width,
E experts, S slots a token has (top-k routed, then the shared ones).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from xverse_kernels.packing import ExpertBlocks, PackedMatrix
from xverse_kernels.types import Parts, Routing, SwigluWeights

RENORMALISE_EPS = 1e-6


def linear(x: Tensor, weight: Tensor | PackedMatrix, bias: Tensor | None = None) -> Tensor:
    """``x @ weight.T + bias``: [T, K] by [N, K] gives [T, N]."""
    dense = weight if isinstance(weight, Tensor) else weight.to_dense(x.dtype)
    return F.linear(x, dense, bias)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Root-mean-square norm (Zhang and Sennrich 2019) of [T, H]: fp32 inside, cast back, scaled."""
    wide = x.float()
    normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return weight * normed.to(x.dtype)


def rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding (Su et al. 2021) in the half-rotation form.

    Args:
        x: [T, heads, head_dim].
        cos: [T, head_dim] fp32; both halves of the last axis hold the same angles.
        sin: like ``cos``.
    """
    cos, sin = cos.to(x.dtype).unsqueeze(1), sin.to(x.dtype).unsqueeze(1)
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def attention(q: Tensor, k: Tensor, v: Tensor, past: int) -> Tensor:
    """Causal attention of the T newest tokens over the whole cache, softmax in fp32.

    Args:
        q: [T, heads, head_dim].
        k: [kv_heads, L, head_dim] with L = past + T; ``heads`` is a multiple of ``kv_heads``.
        v: like ``k``.
        past: tokens that were in the cache before this call.

    Returns:
        [T, heads * head_dim].
    """
    tokens, heads, head_dim = q.shape
    kv_heads, length, _ = k.shape
    grouped = q.view(tokens, kv_heads, heads // kv_heads, head_dim).permute(1, 2, 0, 3)
    scores = grouped @ k.unsqueeze(1).transpose(2, 3) * head_dim**-0.5  # [kv, group, T, L]
    if tokens > 1:
        row = torch.arange(past, past + tokens, device=q.device).unsqueeze(1)
        future = torch.arange(length, device=q.device) > row
        scores = scores.masked_fill(future, float("-inf"))
    probabilities = scores.softmax(-1, dtype=torch.float32).to(q.dtype)
    mixed = probabilities @ v.unsqueeze(1)
    joined: Tensor = mixed.permute(2, 0, 1, 3).reshape(tokens, heads * head_dim)
    return joined


def route(x: Tensor, weight: Tensor, top_k: int) -> Routing:
    """fp32 router: softmax over all experts, the k likeliest, renormalised by (sum + 1e-6).

    Args:
        x: [T, H] normed hidden state.
        weight: [E, H] fp32.
        top_k: experts per token.
    """
    logits = F.linear(x.float(), weight)
    weights, expert_ids = logits.softmax(-1).topk(top_k, dim=-1)
    weights = weights / (weights.sum(-1, keepdim=True) + RENORMALISE_EPS)
    return Routing(weights.to(x.dtype), expert_ids, logits)


def swiglu(x: Tensor, mlp: SwigluWeights) -> Tensor:
    """``down(silu(gate(x)) * up(x))`` (Shazeer 2020): [T, H] to [T, H]."""
    return F.linear(F.silu(F.linear(x, mlp.gate)) * F.linear(x, mlp.up), mlp.down)


def moe(
    x: Tensor,
    weights: Tensor,
    expert_ids: Tensor,
    experts: Sequence[SwigluWeights],
    between_experts: Callable[[], None] | None = None,
) -> Tensor:
    """Weighted sum of the chosen experts, token by token.

    Args:
        x: [T, H].
        weights: [T, S] in the dtype of ``x``.
        expert_ids: [T, S] int64; an id may not occur twice in a row.
        experts: what the ids index; one without a block adds nothing.
        between_experts: called before each expert; raises to abandon the computation.

    Returns:
        [T, H] in the dtype of ``x``.
    """
    out = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
    slots = expert_ids.shape[1]
    by_expert = torch.argsort(expert_ids.flatten(), stable=True)
    counts = torch.bincount(expert_ids.flatten(), minlength=len(experts)).tolist()
    for expert, entries in enumerate(torch.split(by_expert, counts)):
        if entries.numel() == 0 or not _is_here(experts, expert):
            continue
        if between_experts is not None:
            between_experts()
        rows = entries // slots
        weight = weights.flatten()[entries].unsqueeze(1)
        out.index_add_(0, rows, (swiglu(x[rows], experts[expert]) * weight).float())
    return out.to(x.dtype)


def expert_parts(
    x: Tensor, weights: Tensor, expert_ids: Tensor, experts: Sequence[SwigluWeights]
) -> Tensor:
    """What each slot of each token adds: fp32 [T, S, H]; zeros for an expert without a block.

    Token by token, since products of other heights add in another order. Arguments as in `moe`.
    """
    out = torch.zeros(*expert_ids.shape, x.shape[1], dtype=torch.float32, device=x.device)
    for expert in sorted(set(expert_ids.flatten().tolist())):
        if not _is_here(experts, expert):
            continue
        mlp = experts[expert]
        for token, slot in (expert_ids == expert).nonzero().tolist():
            share = swiglu(x[token : token + 1], mlp)[0]
            out[token, slot] = weights[token, slot].float() * share.float()
    return out


def add_parts(residual: Tensor, expert_ids: Tensor, here: Sequence[Parts], rest: Tensor) -> Tensor:
    """``residual`` [T, H] plus slot after slot, added up in fp32: see `KernelBackend.add_parts`."""
    slots, total = rest, residual.float()
    for parts in reversed(here):
        is_here = parts.table[expert_ids.long()] >= 0
        slots = torch.where(is_here.unsqueeze(-1), parts.values, slots)
    for slot in range(slots.shape[1]):
        total = total + slots[:, slot]
    return total.to(residual.dtype)


def _is_here(experts: Sequence[SwigluWeights], expert: int) -> bool:
    return not isinstance(experts, ExpertBlocks) or experts.has(expert)
