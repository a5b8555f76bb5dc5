"""How packed weights are told to the extension: addresses and sizes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from xverse_kernels.cpu.extension import native
from xverse_kernels.packing import BF16, ExpertBlocks, PackedMatrix
from xverse_kernels.types import Projection

LANES = 16
MOST_MATRICES = 4


def numbers_of(projections: Sequence[Projection]) -> tuple[tuple[int, ...], int] | None:
    """What the extension is told of layers side by side, and their rows in all; None where it
    cannot compute them."""
    numbers: list[int] = []
    total = 0
    for weight, bias in projections:
        form = _form_of(weight)
        if form is None or (bias is not None and bias.dtype != torch.float32):
            return None
        data = weight.data if isinstance(weight, PackedMatrix) else weight
        rows = weight.rows if isinstance(weight, PackedMatrix) else weight.shape[0]
        numbers += (data.data_ptr(), 0 if bias is None else bias.data_ptr(), rows, form)
        total += rows
    return (tuple(numbers), total) if len(projections) <= MOST_MATRICES else None


def _form_of(weight: Tensor | PackedMatrix) -> int | None:
    """Bits a weight, of what the extension can read."""
    if isinstance(weight, PackedMatrix):
        fits = weight.form.is_quantised or (weight.form is BF16 and weight.columns % LANES == 0)
        return weight.form.bits if fits else None
    if weight.dtype == torch.bfloat16 and weight.shape[1] % LANES == 0 and weight.is_contiguous():
        return BF16.bits
    return None


def divides(experts: ExpertBlocks) -> bool:
    """Whether the extension can read these blocks."""
    layout = experts.layout
    if not layout.form.is_quantised and layout.form is not BF16:
        return False
    return layout.width % 32 == 0 and layout.hidden % 32 == 0


def add_experts(
    x: Tensor, weights: Tensor, ids: Tensor, experts: ExpertBlocks, residual: Tensor
) -> Tensor:
    """``residual`` plus the weighted experts; all activations fp32, blocks that `divides` takes."""
    residual = residual.contiguous()
    out = torch.empty_like(residual)
    _experts(x, weights, ids, experts, residual.data_ptr(), out.data_ptr(), 0)
    return out


def put_parts(
    x: Tensor, weights: Tensor, ids: Tensor, experts: ExpertBlocks, parts: Tensor
) -> None:
    """The weighted experts of every slot, apart: to ``parts`` [T, S, H], which is contiguous."""
    _experts(x, weights, ids, experts, 0, 0, parts.data_ptr())


def _experts(
    x: Tensor,
    weights: Tensor,
    ids: Tensor,
    experts: ExpertBlocks,
    residual: int,
    out: int,
    parts: int,
) -> None:
    layout = experts.layout
    x, weights = x.contiguous(), weights.contiguous()
    ids, table = ids.to(torch.int64).contiguous(), experts.table.contiguous()
    native.experts(
        x.data_ptr(),
        weights.data_ptr(),
        residual,
        ids.data_ptr(),
        out,
        parts,
        experts.blocks.data_ptr(),
        table.data_ptr(),
        layout.block_bytes,
        x.shape[0],
        ids.shape[1],
        len(experts),
        layout.hidden,
        layout.width,
        layout.form.bits,
    )
