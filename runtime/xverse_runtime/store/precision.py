"""The precisions that users ask for by one word: what they mean for each part."""

from __future__ import annotations

from time import perf_counter

import torch

from xverse_runtime.config import ModelConfig
from xverse_runtime.model_sizes import ModelSizes
from xverse_runtime.store.manifest import StorePrecision

# Attention suffers most from rounding (the scores go through a softmax) and is a small part of
# the bytes, so it keeps one step more than the experts: docs/quantisation.md.
PRESETS = {
    "bf16": StorePrecision(experts="bf16", attention="bf16", head="bf16"),
    "int8": StorePrecision(experts="int8", attention="bf16", head="int8"),
    "int4": StorePrecision(experts="int4", attention="int8", head="int8"),
}
PROBE_BYTES = 2**28
GPU_PROBE_BYTES = 2**30  # so that starting it does not count


def bytes_per_token(config: ModelConfig, precision: StorePrecision) -> int:
    """Weight bytes that one decoded token reads: chosen and shared experts, attention, head."""
    sizes = ModelSizes(config, precision)
    chosen = config.top_k * sizes.block if config.is_moe else 0
    return config.num_layers * (sizes.attention + sizes.always + chosen) + sizes.head


def measure_read_bandwidth(device: str = "cpu") -> float:
    """Bytes per second at which a device reads its memory: the best of a few sums."""
    size = PROBE_BYTES if device == "cpu" else GPU_PROBE_BYTES
    words = torch.ones(size // 8, dtype=torch.int64, device=device)
    best = float("inf")
    for _ in range(4):
        started = perf_counter()
        words.sum().item()  # waits for the device
        best = min(best, perf_counter() - started)
    return size / best
