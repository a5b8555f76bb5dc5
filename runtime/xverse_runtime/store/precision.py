"""The precisions that users ask for by one word: what they mean for each part, and `auto`."""

from __future__ import annotations

from contextlib import suppress
from time import perf_counter

import torch

from xverse_runtime.config import ModelConfig
from xverse_runtime.errors import UsageError
from xverse_runtime.model_sizes import ModelSizes
from xverse_runtime.store.layout import StoreLayout
from xverse_runtime.store.manifest import StorePrecision

# Attention suffers most from rounding (the scores go through a softmax) and is a small part of
# the bytes, so it keeps one step more than the experts: docs/quantisation.md.
PRESETS = {
    "bf16": StorePrecision(experts="bf16", attention="bf16", head="bf16"),
    "int8": StorePrecision(experts="int8", attention="bf16", head="int8"),
    "int4": StorePrecision(experts="int4", attention="int8", head="int8"),
}
READING_SPEED = 15.0  # tokens per second
PROBE_BYTES = 2**28
GPU_PROBE_BYTES = 2**30  # so that starting it does not count


def bytes_per_token(config: ModelConfig, precision: StorePrecision) -> int:
    """Weight bytes that one decoded token reads: chosen and shared experts, attention, head."""
    sizes = ModelSizes(config, precision)
    chosen = config.top_k * sizes.block if config.is_moe else 0
    return config.num_layers * (sizes.attention + sizes.always + chosen) + sizes.head


def choose_precision(config: ModelConfig, read_bandwidth: float) -> tuple[str, float]:
    """The highest precision predicted at reading speed, else the lowest that the widths allow.

    Decoding is bound by reading weights: tokens per second = bandwidth / bytes per token.

    Args:
        config: the model's.
        read_bandwidth: bytes per second.

    Returns:
        Name of the preset, and the tokens per second predicted for it.

    Raises:
        UsageError: ``store.width``: the widths fit no precision.
    """
    rates: dict[str, float] = {}
    for name, preset in PRESETS.items():
        with suppress(UsageError):  # a width that this precision cannot hold
            StoreLayout(config, preset).check()
            rates[name] = read_bandwidth / bytes_per_token(config, preset)
    if not rates:
        StoreLayout(config, PRESETS["bf16"]).check()  # which says what is wrong
    name = next((name for name, rate in rates.items() if rate >= READING_SPEED), [*rates][-1])
    return name, rates[name]


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
