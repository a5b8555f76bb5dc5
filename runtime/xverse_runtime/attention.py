"""The attention block."""

from __future__ import annotations

from torch import Tensor

from xverse_kernels.backend import KernelBackend
from xverse_runtime.config import ModelConfig
from xverse_runtime.kv_cache import KVCache
from xverse_runtime.weights import AttentionWeights


class Attention:
    """Grouped-query attention with rotary positions over the cache of one layer."""

    def __init__(
        self, config: ModelConfig, layer: int, weights: AttentionWeights, kernels: KernelBackend
    ) -> None:
        self._config = config
        self._layer = layer
        self._weights = weights
        self._kernels = kernels

    def __call__(self, x: Tensor, cos: Tensor, sin: Tensor, cache: KVCache) -> Tensor:
        """Normed hidden state [T, H] to the block's output [T, H]; writes T cache entries."""
        config, weights, kernels = self._config, self._weights, self._kernels
        tokens = x.shape[0]
        q = kernels.linear(x, weights.q.weight, weights.q.bias).view(tokens, config.num_heads, config.head_dim)
        k = kernels.linear(x, weights.k.weight, weights.k.bias).view(tokens, config.num_kv_heads, config.head_dim)
        v = kernels.linear(x, weights.v.weight, weights.v.bias).view(tokens, config.num_kv_heads, config.head_dim)
        q, k = kernels.rope(q, cos, sin), kernels.rope(k, cos, sin)
        keys, values = cache.write(self._layer, k, v)
        mixed = kernels.attention(q, keys, values, cache.length)
        return kernels.linear(mixed, weights.o.weight, weights.o.bias)
