"""Experts for many tokens where Triton has no matrix instructions but torch has: one expert after
the other, dequantised once, through torch's own products."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from xverse_kernels.packing import ROWS, ExpertBlocks, PackedMatrix
from xverse_kernels.triton.experts import SortedPairs, sort_pairs
from xverse_kernels.triton.launch import require_rows
from xverse_kernels.triton.linear import dequantise
from xverse_kernels.types import RoutedTokens

# Rows of a product: bounds the scratch memory, 2 x 1728 fp32 a row. As fast as more.
MOST_ROWS = 2048


def experts_by_torch(routed: RoutedTokens, experts: ExpertBlocks, residual: Tensor) -> Tensor:
    """``residual + weighted sum of the experts``: [T, H].

    The host waits once, for how many tokens each expert has. Sums are fp32 all through; what an
    expert has between its two products is in the dtype of the activations, as elsewhere.
    """
    require_rows(experts.blocks, experts.table, residual)
    require_rows(routed.normed, routed.expert_ids, routed.weights)
    slots = routed.expert_ids.shape[1]
    pairs = sort_pairs(routed, experts)
    counts, blocks = _on_host(pairs, experts)
    weights = routed.weights.flatten()
    out = residual.float() if residual.dtype != torch.float32 else residual.clone()
    start = 0
    for count, block in zip(counts, blocks, strict=True):
        if count == 0:  # as for every expert that has no block
            continue
        gate_up, down = _dense(experts, block, routed.normed.dtype)
        for some in torch.split(pairs.order[start : start + count], MOST_ROWS):
            tokens = some // slots
            h = _swiglu(product(routed.normed[tokens], gate_up)).to(down.dtype)
            # a token has an expert once, so every sum is made in the order of the experts
            out.index_add_(0, tokens, product(h, down) * weights[some].float()[:, None])
        start += count
    return out.to(residual.dtype)


def _on_host(pairs: SortedPairs, experts: ExpertBlocks) -> list[list[int]]:
    """How many pairs each expert has, and its block."""
    if experts.table.device.type == "meta":  # nobody has any: launches are as if one had all
        others = [0] * (len(experts) - 1)
        return [[pairs.order.numel(), *others], [0, *others]]
    return torch.stack((pairs.counts, experts.table)).tolist()


def product(x: Tensor, weight: Tensor) -> Tensor:
    """``x`` [T, K] times ``weight`` [N, K] transposed, fp32 [T, N]."""
    if x.dtype == torch.float32 or x.device.type != "cuda":
        return x.float() @ weight.float().t()
    if hasattr(torch.ops.aten.mm, "dtype"):  # torch 2.8 and later
        return torch.mm(x, weight.t(), out_dtype=torch.float32)
    return saturated_product(x, weight)


def saturated_product(x: Tensor, weight: Tensor) -> Tensor:
    """`product` by way of the dtype of ``x``: what leaves its range stays at the end of it, as it
    must not become 0 times infinity."""
    end = torch.finfo(x.dtype).max
    return (x @ weight.t()).clamp(-end, end).float()


def _dense(experts: ExpertBlocks, block: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Gate and up, 16 rows of each in turn [2 I, H], and down [H, I]."""
    layout = experts.layout
    data, middle = experts.blocks[block], layout.gate_up_bytes
    gate_up = PackedMatrix(data[:middle], 2 * layout.width, layout.hidden, layout.form)
    end = middle + layout.down_bytes
    down = PackedMatrix(data[middle:end], layout.hidden, layout.width, layout.form)
    if layout.form.is_quantised:
        return dequantise(gate_up, dtype), dequantise(down, dtype)
    return gate_up.to_dense(dtype), down.to_dense(dtype)


def _swiglu(gate_up: Tensor) -> Tensor:
    """fp32 [T, 2 I] to [T, I]."""
    gate, up = gate_up.view(gate_up.shape[0], -1, 2, ROWS).unbind(2)
    return (F.silu(gate) * up).flatten(1)
