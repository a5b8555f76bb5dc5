"""The attention block."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from xverse_kernels.backend import KernelBackend
from xverse_kernels.types import Norm
from xverse_runtime.weights import AttentionWeights


class Attend(Protocol):
    """How queries meet the cache of a layer: set up once for a forward pass."""

    def __call__(self, qkv: Tensor, layer: int) -> Tensor:
        """Unrotated [T, (heads + 2 kv_heads) * head_dim] to [T, heads * head_dim]."""


class Attention:
    """Projections around grouped-query attention with rotary positions."""

    def __init__(
        self, layer: int, norm: Norm, weights: AttentionWeights, kernels: KernelBackend
    ) -> None:
        self._layer = layer
        self._norm = norm
        self._weights = weights
        self._kernels = kernels
        self._output = (weights.o,)

    def __call__(self, x: Tensor, attend: Attend) -> Tensor:
        """Residual stream [T, H] to residual stream [T, H]; writes T cache entries."""
        qkv = self._kernels.linear(
            x, self._weights.qkv, norm=self._norm, out_dtype=self._norm.weight.dtype
        )
        mixed = attend(qkv, self._layer)
        return self._kernels.linear(mixed, self._output, residual=x, out_dtype=x.dtype)
