"""The true shape with random weights, made on the device."""

from __future__ import annotations

import torch

from bench.gpu.random_weights import random_experts, random_packed
from xverse_kernels.backend import KernelBackend, select_backend
from xverse_kernels.packing import BF16, FORMATS, ExpertLayout
from xverse_kernels.types import Projection
from xverse_runtime.config import ModelConfig
from xverse_runtime.kv_cache import KVPool, cache_dtype
from xverse_runtime.model import Decoder
from xverse_runtime.rope import RotaryTable
from xverse_runtime.store.manifest import StorePrecision
from xverse_runtime.store.synthetic import A4_2B
from xverse_runtime.weights import AttentionWeights, LayerWeights, ModelWeights, MoeWeights

DTYPE = torch.bfloat16


def random_decoder(
    parts: StorePrecision, layers: int = 28, capacity: int = 8192, kv: str = "auto"
) -> tuple[Decoder, KVPool, ModelConfig]:
    """A decoder of XVERSE-MoE-A4.2B's shape, and a cache for one sequence, kept in ``kv``."""
    device = torch.device("cuda")
    config = ModelConfig.from_dict({**A4_2B, "num_hidden_layers": layers})
    kernels: KernelBackend = select_backend("triton", device)
    weights = _weights(config, parts)
    decoder = Decoder(config, weights, kernels, RotaryTable(config, capacity, device))
    return decoder, KVPool(config, capacity, cache_dtype(kv, DTYPE), device), config


def _weights(config: ModelConfig, parts: StorePrecision) -> ModelWeights:
    hidden = config.hidden_size
    form, attention = FORMATS[parts.experts], FORMATS[parts.attention]
    layout = ExpertLayout(hidden, config.intermediate_size, form)
    blocks = config.num_experts + config.num_shared_experts

    def layer() -> LayerWeights:
        qkv = random_packed(3 * hidden, hidden, attention, "cuda")
        out = random_packed(hidden, hidden, attention, "cuda")
        router = torch.randn(config.num_experts, hidden, device="cuda") * hidden**-0.5
        return LayerWeights(
            input_norm=torch.ones(hidden, device="cuda", dtype=DTYPE),
            attention=AttentionWeights((Projection(qkv),), Projection(out)),
            post_attention_norm=torch.ones(hidden, device="cuda", dtype=DTYPE),
            mlp=MoeWeights(router, random_experts(blocks, layout, DTYPE, "cuda")),
        )

    embedding = random_packed(config.vocab_size, hidden, BF16, "cuda")
    assert isinstance(embedding, torch.Tensor)
    return ModelWeights(
        embedding=embedding * hidden**0.5,
        layers=tuple(layer() for _ in range(config.num_layers)),
        norm=torch.ones(hidden, device="cuda", dtype=DTYPE),
        head=random_packed(config.vocab_size, hidden, FORMATS[parts.head], "cuda"),
    )
