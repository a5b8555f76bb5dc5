"""How often each expert was chosen: whether they work evenly."""

from __future__ import annotations

import torch
from torch import Tensor

from xverse_runtime.config import ModelConfig


class ExpertLoad:
    """A `RouterObserver` that counts, on the device and without waiting for it."""

    def __init__(self, config: ModelConfig, device: torch.device) -> None:
        shape = (config.num_layers, config.num_experts)
        self._top_k = config.top_k
        self._counts = torch.zeros(shape, dtype=torch.int64, device=device)

    def __call__(self, layer: int, logits: Tensor) -> None:
        """Count the choices of ``logits`` [T, E]."""
        chosen = logits.topk(self._top_k).indices.flatten()
        self._counts[layer].scatter_add_(0, chosen, torch.ones_like(chosen))

    @property
    def counts(self) -> tuple[tuple[int, ...], ...]:
        """For each layer, choices of each expert."""
        return tuple(tuple(layer) for layer in self._counts.tolist())
