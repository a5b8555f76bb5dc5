"""Angles of the rotary embedding."""

from __future__ import annotations

import torch

from xverse_kernels.types import Rotary
from xverse_runtime.config import ModelConfig


class RotaryTable:
    """cos and sin of every position up to the context length, fp32 [positions, head_dim].

    Dynamic (NTK-aware) scaling raises the base only where the context goes beyond the trained
    length. The base is fixed by the engine's context length rather than by the text so far:
    keys in the cache then never have to be rotated anew, and a text gives the same logits however
    it is split into calls (docs/decisions).
    """

    def __init__(self, config: ModelConfig, context_length: int, device: torch.device) -> None:
        base = rope_base(config, context_length)
        exponents = torch.arange(0, config.head_dim, 2, dtype=torch.int64).float() / config.head_dim
        inverse_frequencies = 1.0 / base**exponents
        positions = torch.arange(context_length, dtype=torch.int64).float()
        if config.rope_scaling is not None and config.rope_scaling.kind == "linear":
            positions = positions / config.rope_scaling.factor
        angles = torch.outer(positions, inverse_frequencies)
        angles = torch.cat((angles, angles), dim=-1).to(device)
        self.table = Rotary(angles.cos(), angles.sin())


def rope_base(config: ModelConfig, context_length: int) -> float:
    """The base theta, raised for dynamic scaling by the NTK-aware formula (bloc97, 2023):
    theta * (factor * length / trained - (factor - 1)) ** (d / (d - 2))."""
    scaling, trained = config.rope_scaling, config.max_position_embeddings
    if scaling is None or scaling.kind != "dynamic" or context_length <= trained:
        return config.rope_theta
    stretch = scaling.factor * context_length / trained - (scaling.factor - 1)
    return float(config.rope_theta * stretch ** (config.head_dim / (config.head_dim - 2)))
