"""The mixture of experts."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from xverse_kernels.backend import KernelBackend
from xverse_kernels.types import Norm, RoutedTokens
from xverse_runtime.config import ModelConfig
from xverse_runtime.weights import MoeWeights

RouterObserver = Callable[[int, Tensor], None]
# Routed tokens, the residual stream, and what to call where the computation may be broken off.
ExpertRunner = Callable[[RoutedTokens, Tensor, Callable[[], None] | None], Tensor]


class MixtureOfExperts:
    """Routed experts, and shared experts as further slots: always on, weight 1.0."""

    def __init__(
        self,
        config: ModelConfig,
        layer: int,
        norm: Norm,
        weights: MoeWeights,
        kernels: KernelBackend,
        offloaded: ExpertRunner | None = None,
    ) -> None:
        """``offloaded`` computes the experts if not all of them are on the device."""
        self._offloaded = offloaded
        self._layer = layer
        self._top_k = config.top_k
        self._shared = config.num_shared_experts
        self._norm = norm
        self._weights = weights
        self._kernels = kernels

    def __call__(
        self,
        x: Tensor,
        between_experts: Callable[[], None] | None = None,
        observer: RouterObserver | None = None,
    ) -> Tensor:
        """Residual stream [T, H] to residual stream [T, H].

        Args:
            x: the residual stream.
            between_experts: called before each expert; may raise.
            observer: told the layer and its router logits [T, E] fp32.
        """
        routed = self.route(x)
        if observer is not None:
            observer(self._layer, routed.logits)
        if self._offloaded is not None:
            return self._offloaded(routed, x, between_experts)
        return self._kernels.experts(routed, self._weights.experts, x, between_experts)

    def route(self, x: Tensor) -> RoutedTokens:
        """Choose experts for the residual stream [T, H]."""
        return self._kernels.route(x, self._norm, self._weights.router, self._top_k, self._shared)
