"""What the launchers would compile, found by running the decoder itself on tensors without data."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from tools.aot.targets import Target
from xverse_kernels.backend import KernelBackend
from xverse_kernels.packing import ExpertBlocks, ExpertLayout, PackedMatrix, WeightFormat
from xverse_kernels.triton.backend import TritonBackend
from xverse_kernels.triton.launch import recording
from xverse_kernels.triton.versions import Version
from xverse_kernels.types import Norm, Parts, Projection, Rotary
from xverse_runtime.config import ModelConfig
from xverse_runtime.kv_cache import KVCache, KVPool
from xverse_runtime.model import Decoder
from xverse_runtime.store.synthetic import A4_2B
from xverse_runtime.weights import AttentionWeights, LayerWeights, ModelWeights, MoeWeights

META = torch.device("meta")
CAPACITY = 32768
# Every way to divide the work by tokens and by the past: a test holds them against tiles.py.
TOKENS = (1, 8, 32, 64, 512, 4096)
LONGEST = (256, 1024, CAPACITY)


def record(target: Target, dtype: torch.dtype, form: WeightFormat) -> list[Version]:
    """All that a model of the true shape launches, with activations of ``dtype`` and weights of
    ``form``, for prompts and steps of TOKENS tokens and pasts of LONGEST, in caches of both
    formats."""
    config = ModelConfig.from_dict({**A4_2B, "num_hidden_layers": 1})
    rotary = Rotary(*(torch.empty(CAPACITY, config.head_dim, device=META) for _ in range(2)))
    with recording(target.abilities) as found:
        decoder = Decoder(
            config,
            _weights(config, dtype, form),
            TritonBackend(META, by_torch=False),
            _Table(rotary),
        )
        for tokens, cache in product(TOKENS, (dtype, torch.int8)):
            pool = KVPool(config, CAPACITY, cache, META, tokens)
            decoder.forward([0] * tokens, KVCache(pool))
            ids = torch.zeros(tokens, dtype=torch.int64, device=META)
            where = torch.zeros(tokens, dtype=torch.int32, device=META)
            for longest in LONGEST:
                logits = decoder.step(ids, pool, where, where, longest)
            sampler = decoder.kernels.sampler(tokens, config.vocab_size)
            assert sampler is not None
            sampler(logits)
        _record_parts(config, decoder.kernels, dtype, form)
    return list(found)


def _record_parts(
    config: ModelConfig, kernels: KernelBackend, dtype: torch.dtype, form: WeightFormat
) -> None:
    """Experts slot by slot, of one token: all computed here, and some of them elsewhere."""
    mlp = _weights(config, dtype, form).layers[0].mlp
    assert isinstance(mlp, MoeWeights)
    assert isinstance(mlp.experts, ExpertBlocks)
    norm = Norm(torch.empty(config.hidden_size, dtype=dtype, device=META), config.rms_norm_eps)
    # as the decoder has it: see Decoder._embed
    wide = torch.float32 if dtype == torch.float16 else dtype
    x = torch.empty(1, config.hidden_size, dtype=wide, device=META)
    routed = kernels.route(x, norm, mlp.router, config.top_k, config.num_shared_experts)
    shape = (*routed.expert_ids.shape, config.hidden_size)
    parts = torch.empty(shape, dtype=torch.float32, device=META)
    kernels.expert_parts(routed, mlp.experts, parts)
    table = torch.empty(mlp.experts.table.shape, dtype=torch.int32, device=META)
    for tables in (0, 2):
        kernels.add_parts(x, routed.expert_ids, [Parts(parts, table)] * tables, parts)
    told = [torch.empty(one.shape, dtype=torch.float32, device=META) for one in routed]
    kernels.copy_small(list(zip(routed, told, strict=True)))


@dataclass(frozen=True)
class _Table:
    table: Rotary


def _weights(config: ModelConfig, dtype: torch.dtype, form: WeightFormat) -> ModelWeights:
    hidden, blocks = config.hidden_size, config.num_experts + config.num_shared_experts

    def matrix(rows: int) -> Tensor | PackedMatrix:
        if not form.is_quantised:
            return torch.empty(rows, hidden, dtype=form.dtype, device=META)
        size = form.matrix_bytes(rows, hidden)
        return PackedMatrix(torch.empty(size, dtype=torch.uint8, device=META), rows, hidden, form)

    def vector() -> Tensor:
        return torch.empty(hidden, dtype=dtype, device=META)

    layout = ExpertLayout(hidden, config.intermediate_size, form)
    packed = torch.empty(blocks, layout.block_bytes, dtype=torch.uint8, device=META)
    layer = LayerWeights(
        input_norm=vector(),
        attention=AttentionWeights((Projection(matrix(3 * hidden)),), Projection(matrix(hidden))),
        post_attention_norm=vector(),
        mlp=MoeWeights(
            torch.empty(config.num_experts, hidden, device=META),
            ExpertBlocks(packed, layout, dtype),
        ),
    )
    embedding = torch.empty(config.vocab_size, hidden, dtype=dtype, device=META)
    return ModelWeights(embedding, (layer,), vector(), matrix(config.vocab_size))
