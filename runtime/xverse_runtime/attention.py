"""The attention block."""

from __future__ import annotations

from torch import Tensor

from xverse_kernels.backend import KernelBackend
from xverse_runtime.config import ModelConfig
from xverse_runtime.kv_cache import KVCache
from xverse_runtime.weights import AttentionWeights, Projection


class Attention:
    """Grouped-query attention with rotary positions over the cache of one layer."""

    def __init__(
        self, config: ModelConfig, layer: int, weights: AttentionWeights, kernels: KernelBackend
    ) -> None:
        self._head_dim = config.head_dim
        self._layer = layer
        self._weights = weights
        self._kernels = kernels

    def __call__(self, x: Tensor, cos: Tensor, sin: Tensor, cache: KVCache) -> Tensor:
        """Normed hidden state [T, H] to the block's output [T, H]; writes T cache entries."""
        weights, kernels = self._weights, self._kernels
        q = kernels.rope(self._heads(x, weights.q), cos, sin)
        k = kernels.rope(self._heads(x, weights.k), cos, sin)
        keys, values = cache.write(self._layer, k, self._heads(x, weights.v))
        mixed = kernels.attention(q, keys, values, cache.length)
        return kernels.linear(mixed, weights.o.weight, weights.o.bias)

    def _heads(self, x: Tensor, projection: Projection) -> Tensor:
        """[T, H] to [T, heads, head_dim]; as many heads as the projection has rows for."""
        rows = self._kernels.linear(x, projection.weight, projection.bias)
        return rows.view(x.shape[0], -1, self._head_dim)
