"""The decoder, written once for every model of the family and every device."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from xverse_kernels.backend import KernelBackend
from xverse_runtime.attention import Attention
from xverse_runtime.config import ModelConfig
from xverse_runtime.kv_cache import KVCache
from xverse_runtime.moe import MixtureOfExperts, RouterObserver
from xverse_runtime.rope import RotaryTable
from xverse_runtime.weights import DenseWeights, LayerWeights, ModelWeights, MoeWeights

Checkpoint = Callable[[], None]


class DecoderLayer:
    """Pre-norm attention and MLP, each added to the residual stream."""

    def __init__(
        self, config: ModelConfig, number: int, weights: LayerWeights, kernels: KernelBackend
    ) -> None:
        self._eps = config.rms_norm_eps
        self._weights = weights
        self._kernels = kernels
        self._attention = Attention(config, number, weights.attention, kernels)
        mlp = weights.mlp
        self._moe = (
            MixtureOfExperts(config, number, mlp, kernels) if isinstance(mlp, MoeWeights) else None
        )

    def __call__(
        self,
        x: Tensor,
        rotary: tuple[Tensor, Tensor],
        cache: KVCache,
        between: Checkpoint | None,
        observer: RouterObserver | None,
    ) -> Tensor:
        """Residual stream [T, H] to residual stream [T, H]."""
        weights, kernels = self._weights, self._kernels
        normed = kernels.rms_norm(x, weights.input_norm, self._eps)
        x = x + self._attention(normed, *rotary, cache)
        if between is not None:
            between()
        normed = kernels.rms_norm(x, weights.post_attention_norm, self._eps)
        if self._moe is not None:
            return x + self._moe(normed, between, observer)
        assert isinstance(weights.mlp, DenseWeights)
        return x + kernels.swiglu(normed, weights.mlp.mlp[0])


class Decoder:
    """Token ids in, logits out."""

    def __init__(
        self,
        config: ModelConfig,
        weights: ModelWeights,
        kernels: KernelBackend,
        rotary: RotaryTable,
    ) -> None:
        self.config = config
        self._weights = weights
        self._kernels = kernels
        self._rotary = rotary
        self._layers = [
            DecoderLayer(config, number, layer, kernels)
            for number, layer in enumerate(weights.layers)
        ]

    @torch.inference_mode()
    def forward(
        self,
        tokens: Sequence[int],
        cache: KVCache,
        *,
        logits_for: slice = slice(-1, None),
        between: Checkpoint | None = None,
        observer: RouterObserver | None = None,
    ) -> Tensor:
        """Compute ``tokens`` after what is cached, and commit them to the cache.

        Args:
            tokens: at least one id.
            cache: must have room for them.
            logits_for: which of the tokens to give logits for; the head is read for these alone.
            between: called between layers and experts; whatever it raises leaves the cache as it
                was before the call.
            observer: told each layer's router logits.

        Returns:
            fp32 logits [chosen tokens, vocab].
        """
        cache.check_room(len(tokens))
        weights, kernels = self._weights, self._kernels
        ids = torch.tensor(tokens, dtype=torch.int64, device=weights.embedding.device)
        x = F.embedding(ids, weights.embedding).to(weights.norm.dtype)
        rotary = self._rotary.at(cache.length, len(tokens))
        for layer in self._layers:
            if between is not None:
                between()
            x = layer(x, rotary, cache, between, observer)
        x = kernels.rms_norm(x[logits_for], weights.norm, self.config.rms_norm_eps)
        logits = kernels.linear(x, weights.head).float()
        cache.commit(tokens)
        return logits
