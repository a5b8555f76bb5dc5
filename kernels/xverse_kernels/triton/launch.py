"""What all launchers share: scratch memory, and the views of weights that kernels read."""

from __future__ import annotations

import torch
from torch import Tensor

from xverse_kernels.packing import ExpertBlocks, PackedMatrix

COUNTERS = 1 << 16


class Workspace:
    """Scratch memory of one device: partial sums, and counters that every kernel leaves at zero.

    Kernels of one stream use it one after the other, so it is not for two streams at once.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.counters = torch.zeros(COUNTERS, dtype=torch.int32, device=device)
        self._partials = torch.empty(1 << 20, dtype=torch.float32, device=device)

    def partials(self, count: int) -> Tensor:
        """fp32 [at least ``count``]. Grows, so the largest need must come before a graph capture."""
        if self._partials.numel() < count:
            self._partials = torch.empty(count, dtype=torch.float32, device=self.device)
        return self._partials


def matrix_views(weight: Tensor | PackedMatrix) -> tuple[Tensor, Tensor, int, int, int]:
    """(weights as the kernel reads them, scales, bits, rows, columns) of a matrix."""
    if isinstance(weight, PackedMatrix):
        flat = weight.data
        return (
            flat.view(torch.int32),
            flat.view(torch.float16),
            weight.form.bits,
            weight.rows,
            weight.columns,
        )
    require_rows(weight)
    return weight, weight, weight.element_size() * 8, *weight.shape


def block_views(experts: ExpertBlocks) -> tuple[Tensor, Tensor, int]:
    """(weights as the kernel reads them, scales, bits) of expert blocks."""
    form = experts.layout.form
    if form.dtype is None:
        return experts.blocks.view(torch.int32), experts.blocks.view(torch.float16), form.bits
    weights = experts.blocks.view(form.dtype)
    return weights, weights, form.bits


def require_rows(*tensors: Tensor) -> None:
    """Kernels take whole rows, one after the other.

    Raises:
        ValueError: a tensor that is not contiguous.
    """
    for tensor in tensors:
        if not tensor.is_contiguous():
            raise ValueError(
                f"kernels take contiguous rows, not strides {tensor.stride()}"
                f" of shape {tuple(tensor.shape)}: call .contiguous() first"
            )


def padded(size: int) -> int:
    """The next power of two."""
    return 1 << (size - 1).bit_length()
