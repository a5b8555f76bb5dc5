"""The mixture of experts."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from xverse_kernels.backend import KernelBackend
from xverse_kernels.types import Norm
from xverse_runtime.config import ModelConfig
from xverse_runtime.weights import MoeWeights

RouterObserver = Callable[[int, Tensor], None]


class MixtureOfExperts:
    """Routed experts, and shared experts as further slots: always on, weight 1.0."""

    def __init__(
        self,
        config: ModelConfig,
        layer: int,
        norm: Norm,
        weights: MoeWeights,
        kernels: KernelBackend,
    ) -> None:
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
        routed = self._kernels.route(x, self._norm, self._weights.router, self._top_k, self._shared)
        if observer is not None:
            observer(self._layer, routed.logits)
        return self._kernels.experts(routed, self._weights.experts, x, between_experts)
