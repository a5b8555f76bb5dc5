"""The decoder, written once for every model of the family and every device."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from xverse_kernels.backend import KernelBackend
from xverse_kernels.types import Norm, Projection, RoutedTokens
from xverse_runtime.attention import Attend, Attention
from xverse_runtime.config import ModelConfig
from xverse_runtime.kv_cache import KVCache, KVPool
from xverse_runtime.moe import ExpertRunner, MixtureOfExperts, RouterObserver
from xverse_runtime.rope import RotaryTable
from xverse_runtime.weights import DenseWeights, LayerWeights, ModelWeights, MoeWeights

Checkpoint = Callable[[], None]


class DecoderLayer:
    """Pre-norm attention and MLP, each added to the residual stream."""

    def __init__(
        self,
        config: ModelConfig,
        number: int,
        weights: LayerWeights,
        kernels: KernelBackend,
        offloaded: ExpertRunner | None = None,
    ) -> None:
        eps = config.rms_norm_eps
        self._kernels = kernels
        self._attention = Attention(
            number, Norm(weights.input_norm, eps), weights.attention, kernels
        )
        self._mlp_norm = Norm(weights.post_attention_norm, eps)
        self._mlp = weights.mlp
        self._moe = (
            MixtureOfExperts(config, number, self._mlp_norm, weights.mlp, kernels, offloaded)
            if isinstance(weights.mlp, MoeWeights)
            else None
        )

    def __call__(
        self,
        x: Tensor,
        attend: Attend,
        between: Checkpoint | None = None,
        observer: RouterObserver | None = None,
    ) -> Tensor:
        """Residual stream [T, H] to residual stream [T, H]."""
        x = self._attention(x, attend)
        if between is not None:
            between()
        if self._moe is not None:
            return self._moe(x, between, observer)
        assert isinstance(self._mlp, DenseWeights)
        return self._kernels.mlp(x, self._mlp_norm, self._mlp.mlp, x, between)

    def until_experts(self, x: Tensor, attend: Attend) -> tuple[Tensor, RoutedTokens]:
        """The first half of a layer with experts: residual stream to residual stream, and where its
        tokens go."""
        x = self._attention(x, attend)
        return x, self.route(x)

    def route(self, x: Tensor) -> RoutedTokens:
        """Where this layer's router sends a residual stream [T, H]: of another layer it is a guess
        at where its own will go."""
        assert self._moe is not None
        return self._moe.route(x)


class Decoder:
    """Token ids in, logits out."""

    def __init__(
        self,
        config: ModelConfig,
        weights: ModelWeights,
        kernels: KernelBackend,
        rotary: RotaryTable,
        offloaded: Sequence[ExpertRunner] | None = None,
    ) -> None:
        """``offloaded``: for each layer what computes its experts, where the device has not all."""
        self.config = config
        self._weights = weights
        self._kernels = kernels
        self._rotary = rotary.table
        self.observer: RouterObserver | None = None  # of every `forward` that has none of its own
        self._final_norm = Norm(weights.norm, config.rms_norm_eps)
        self._head_weight = (Projection(weights.head),)
        self.layers = [
            DecoderLayer(config, number, layer, kernels, offloaded[number] if offloaded else None)
            for number, layer in enumerate(weights.layers)
        ]

    @property
    def kernels(self) -> KernelBackend:
        """What it computes with."""
        return self._kernels

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self._weights.norm.device

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
        """Compute ``tokens`` of one sequence after what is cached, and commit them to the cache.

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
        observer = observer or self.observer
        cache.check_room(len(tokens))
        pool, past = cache.pool, cache.length

        def attend(qkv: Tensor, layer: int) -> Tensor:
            keys, values = pool.keys[layer], pool.values[layer]
            return self._kernels.attend_span(qkv, self._rotary, keys, values, cache.sequence, past)

        ids = torch.tensor(tokens, dtype=torch.int64, device=self._weights.embedding.device)
        x = self.embed(ids)
        for layer in self.layers:
            if between is not None:
                between()
            x = layer(x, attend, between, observer)
        logits = self.head(x[logits_for], between)
        cache.commit(tokens)
        return logits

    @torch.inference_mode()
    def step(
        self, ids: Tensor, pool: KVPool, sequences: Tensor, positions: Tensor, longest: int
    ) -> Tensor:
        """Compute the newest token of each of T sequences; nothing is committed.

        Args:
            ids: int64 [T].
            pool: written at each token's position.
            sequences: int32 [T], all different.
            positions: int32 [T].
            longest: at least every position: fixes how the work is divided.

        Returns:
            fp32 logits [T, vocab].
        """

        attend = self.attend_each(pool, sequences, positions, longest)
        x = self.embed(ids)
        for layer in self.layers:
            x = layer(x, attend)
        return self.head(x)

    def attend_each(
        self, pool: KVPool, sequences: Tensor, positions: Tensor, longest: int
    ) -> Attend:
        """How the newest tokens of `step` meet the cache."""

        def attend(qkv: Tensor, layer: int) -> Tensor:
            keys, values = pool.keys[layer], pool.values[layer]
            return self._kernels.attend_each(
                qkv, self._rotary, keys, values, sequences, positions, longest
            )

        return attend

    def embed(self, ids: Tensor) -> Tensor:
        """int64 [T] to the residual stream [T, H]."""
        norm = self._weights.norm
        # Sums of many layers can leave the range of fp16, so the residual stream is fp32 there.
        dtype = torch.float32 if norm.dtype == torch.float16 else norm.dtype
        embedding = self._weights.embedding  # may have stayed on the host
        return F.embedding(ids.to(embedding.device), embedding).to(norm.device, dtype)

    def head(self, x: Tensor, between: Checkpoint | None = None) -> Tensor:
        """Residual stream [T, H] to fp32 logits [T, vocab]."""
        return self._kernels.linear(
            x.contiguous(),
            self._head_weight,
            norm=self._final_norm,
            out_dtype=torch.float32,
            between=between,
        )
