"""Random weights made on the device: 52 GB of them in a second or two."""

from __future__ import annotations

import torch
from torch import Tensor

from xverse_kernels.packing import (
    BLOCK_ALIGNMENT,
    CHUNK_COLUMNS,
    ROWS,
    ExpertBlocks,
    ExpertLayout,
    PackedMatrix,
    WeightFormat,
)
from xverse_kernels.quantise import GROUP

# Standard deviation of uniform integers around -1/2.
DEVIATION = {4: 4.637, 8: 73.9}


def random_matrix(rows: int, columns: int, form: WeightFormat, device: str) -> Tensor:
    """Packed bytes of a matrix whose weights have mean 0 and deviation 1 / sqrt(columns)."""
    size = form.matrix_bytes(rows, columns)
    if form.dtype is not None:
        values = torch.empty(size // form.dtype.itemsize, dtype=form.dtype, device=device)
        return values.normal_(std=columns**-0.5).view(torch.uint8)
    data = torch.empty(size // 8, dtype=torch.int64, device=device).random_().view(torch.uint8)
    # random_ leaves the sign bit of every 64-bit word at 0, which biases one integer in 16 a little
    blocks = data.view(-(-rows // ROWS), -1)
    scale = torch.tensor(columns**-0.5 / DEVIATION[form.bits], dtype=torch.float16, device=device)
    first = 0
    while first < columns:
        width = min(CHUNK_COLUMNS, columns - first)
        chunks = (columns - first) // width if width == CHUNK_COLUMNS else 1
        integers, scales = ROWS * width * form.bits // 8, ROWS * width // GROUP * 2
        start = first * ROWS * form.bits // 8 + first // GROUP * ROWS * 2
        span = blocks[:, start : start + chunks * (integers + scales)]
        view = span.view(len(blocks), chunks, -1)[:, :, integers:]
        view.view(torch.float16).copy_(scale.expand(view.shape[0], view.shape[1], scales // 2))
        first += chunks * width
    return data


def random_packed(
    rows: int, columns: int, form: WeightFormat, device: str
) -> PackedMatrix | Tensor:
    """A matrix [rows, columns] for a linear layer."""
    data = random_matrix(rows, columns, form, device)
    if form.dtype is not None:
        return data.view(form.dtype).view(-1, columns)[:rows]
    return PackedMatrix(data, rows, columns, form)


def random_experts(
    count: int, layout: ExpertLayout, dtype: torch.dtype, device: str
) -> ExpertBlocks:
    """The experts of one layer."""
    blocks = torch.zeros(count, layout.block_bytes, dtype=torch.uint8, device=device)
    assert layout.block_bytes % BLOCK_ALIGNMENT == 0
    end = layout.gate_up_bytes + layout.down_bytes
    for block in blocks:
        block[: layout.gate_up_bytes] = random_matrix(
            2 * layout.width, layout.hidden, layout.form, device
        )
        block[layout.gate_up_bytes : end] = random_matrix(
            layout.hidden, layout.width, layout.form, device
        )
    return ExpertBlocks(blocks, layout, dtype)
