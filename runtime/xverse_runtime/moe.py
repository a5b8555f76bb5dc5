"""The mixture of experts."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from xverse_kernels.backend import KernelBackend
from xverse_runtime.config import ModelConfig
from xverse_runtime.weights import MoeWeights

RouterObserver = Callable[[int, Tensor], None]


class MixtureOfExperts:
    """Routed experts, and shared experts as further slots: always on, weight 1.0."""

    def __init__(
        self, config: ModelConfig, layer: int, weights: MoeWeights, kernels: KernelBackend
    ) -> None:
        self._layer = layer
        self._top_k = config.top_k
        self._weights = weights
        self._kernels = kernels
        device = weights.router.device
        first, count = config.num_experts, config.num_shared_experts
        self._shared_ids = torch.arange(first, first + count, device=device)

    def __call__(
        self,
        x: Tensor,
        between_experts: Callable[[], None] | None = None,
        observer: RouterObserver | None = None,
    ) -> Tensor:
        """Normed hidden state [T, H] to the block's output [T, H].

        Args:
            x: the hidden state.
            between_experts: called before each expert; may raise.
            observer: told the layer and its router logits [T, E] fp32.
        """
        routing = self._kernels.route(x, self._weights.router, self._top_k)
        if observer is not None:
            observer(self._layer, routing.logits)
        tokens, shared = x.shape[0], self._shared_ids.shape[0]
        expert_ids = torch.cat((routing.expert_ids, self._shared_ids.expand(tokens, shared)), dim=1)
        weights = torch.cat((routing.weights, routing.weights.new_ones(tokens, shared)), dim=1)
        return self._kernels.moe(x, weights, expert_ids, self._weights.experts, between_experts)
