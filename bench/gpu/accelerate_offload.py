"""What model cards tell users to do: Accelerate moves whole layers of a transformers model to the
GPU when they are needed."""

from __future__ import annotations

import time
from statistics import median
from typing import Any

import torch

from xverse_kernels.packing import ExpertBlocks
from xverse_runtime.config import ModelConfig

STEPS = 6


def accelerate_tokens_per_s(
    config: ModelConfig, blocks: list[ExpertBlocks], gpu_bytes: int
) -> float:
    """Decoding with bf16 experts that lie in the very memory of ``blocks``.

    `Ernie4_5_Moe` is this architecture; its parameters are made without memory, and those of the
    experts are views of the blocks (whose rows of gate and up alternate, which changes what is
    computed and not how fast).
    """
    from accelerate import dispatch_model, infer_auto_device_map

    model = _model(config)
    for number, layer in enumerate(model.model.layers):
        _fill(layer, blocks[number], config)
    _materialise(model)
    device_map = infer_auto_device_map(
        model,
        max_memory={0: gpu_bytes, "cpu": 2**40},
        no_split_module_classes=["Ernie4_5_MoeDecoderLayer"],
    )
    model = dispatch_model(model, device_map, main_device=0)
    return _decode(model)


def _model(config: ModelConfig) -> Any:
    import transformers
    from transformers import Ernie4_5_MoeConfig, Ernie4_5_MoeForCausalLM

    transformers.logging.set_verbosity_error()
    made = Ernie4_5_MoeConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.num_shared_experts * config.intermediate_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_kv_heads,
        max_position_embeddings=config.max_position_embeddings,
        rms_norm_eps=config.rms_norm_eps,
        tie_word_embeddings=False,
        moe_intermediate_size=config.intermediate_size,
        moe_k=config.top_k,
        moe_num_experts=config.num_experts,
        moe_num_shared_experts=config.num_shared_experts,
        moe_layer_start_index=0,
    )
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("meta"):
            return Ernie4_5_MoeForCausalLM(made).eval()
    finally:
        torch.set_default_dtype(torch.float32)


def _fill(layer: Any, blocks: ExpertBlocks, config: ModelConfig) -> None:
    layout, experts = blocks.layout, config.num_experts
    end = layout.gate_up_bytes + layout.down_bytes
    raw = blocks.blocks[:experts]
    gate_up = raw[:, : layout.gate_up_bytes].view(torch.bfloat16)
    down = raw[:, layout.gate_up_bytes : end].view(torch.bfloat16)
    shapes = {
        "gate_up_proj": gate_up.unflatten(1, (2 * layout.width, layout.hidden)),
        "down_proj": down.unflatten(1, (layout.hidden, layout.width)),
    }
    for name, tensor in shapes.items():
        found: Any = getattr(layer.mlp.experts, name)
        if found.shape != tensor.shape:
            raise RuntimeError(f"transformers has experts of {found.shape}, not {tensor.shape}")
        setattr(layer.mlp.experts, name, torch.nn.Parameter(tensor, requires_grad=False))


def _materialise(model: Any) -> None:
    """Everything that has no memory yet gets small random numbers."""
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter.is_meta:
                made = torch.empty(parameter.shape, dtype=parameter.dtype).normal_(std=0.02)
                setattr(module, name, torch.nn.Parameter(made, requires_grad=False))
        for name, buffer in list(module.named_buffers(recurse=False)):
            if buffer.is_meta:
                module.register_buffer(name, torch.zeros(buffer.shape, dtype=buffer.dtype))


@torch.inference_mode()
def _decode(model: Any) -> float:
    from transformers import DynamicCache

    cache = DynamicCache(config=model.config)
    token = torch.tensor([[7]], device="cuda")
    times = []
    for _ in range(STEPS):
        torch.cuda.synchronize()
        started = time.perf_counter()
        out = model(input_ids=token, past_key_values=cache, use_cache=True, logits_to_keep=1)
        token = out.logits[:, -1:].argmax(-1).to("cuda")
        torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return 1 / median(times[2:])
