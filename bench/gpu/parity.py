"""Kernels against fp64 on fresh random inputs: no time is taken of a wrong result."""

from __future__ import annotations

import torch
from torch import Tensor

from xverse_kernels import reference
from xverse_kernels.packing import ExpertBlocks
from xverse_kernels.triton import experts
from xverse_kernels.triton.launch import Workspace
from xverse_kernels.types import RoutedTokens, SwigluWeights

TOLERANCE = 1e-2


def relative_error(found: Tensor, expected: Tensor) -> float:
    """‖found - expected‖ / ‖expected‖ in fp64; infinite if anything is not finite."""
    found, expected = found.double().cpu(), expected.double().cpu()
    if not bool(torch.isfinite(found).all()):
        return float("inf")
    return float((found - expected).norm() / expected.norm())


def experts_in_fp64(blocks: ExpertBlocks, routed: RoutedTokens) -> Tensor:
    """What the experts add, [T, H] fp64 on the CPU."""
    layout = blocks.layout
    ids = routed.expert_ids.tolist()
    unpacked = {
        expert: SwigluWeights(
            *(part.double() for part in layout.unpack(blocks.blocks[expert].cpu(), torch.float32))
        )
        for expert in {one for row in ids for one in row}
    }
    x, weights = routed.normed.double().cpu(), routed.weights.double().cpu()
    out = torch.zeros_like(x)
    for token, row in enumerate(ids):
        for slot, expert in enumerate(row):
            y = reference.swiglu(x[token : token + 1], unpacked[expert])[0]
            out[token] += weights[token, slot] * y
    return out


def check_experts(blocks: ExpertBlocks, routed: RoutedTokens, workspace: Workspace) -> None:
    """Raises ValueError when one of the two ways of computing experts is off."""
    residual = torch.zeros_like(routed.normed)
    expected = experts_in_fp64(blocks, routed)
    h = experts.gate_up_each(routed, blocks)
    ways = {
        "each": experts.down_each(h, routed, blocks, residual, workspace),
        "grouped": experts.experts_grouped(routed, blocks, residual),
    }
    for name, found in ways.items():
        error = relative_error(found, expected)
        if not error < TOLERANCE:
            form = blocks.layout.form.name
            raise ValueError(f"experts, {name}, {form}: relative error {error:.3g}")
