"""A model's weights as the decoder uses them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from xverse_kernels.packing import PackedMatrix
from xverse_kernels.types import Projection, SwigluWeights
from xverse_runtime.config import ModelConfig
from xverse_runtime.tensors import EMBEDDING, FINAL_NORM, HEAD, PROJECTIONS, layer_prefix


@dataclass(frozen=True)
class AttentionWeights:
    """``qkv``: the three input projections one by one, or all in one; then the output's."""

    qkv: tuple[Projection, ...]
    o: Projection


@dataclass(frozen=True)
class MoeWeights:
    """``router`` [E, H], always fp32. ``experts``: the E routed ones, then the shared ones."""

    router: Tensor
    experts: Sequence[SwigluWeights]


@dataclass(frozen=True)
class DenseWeights:
    """The one MLP of a dense model's layer, as a sequence of one: it may be a packed block."""

    mlp: Sequence[SwigluWeights]


@dataclass(frozen=True)
class LayerWeights:
    input_norm: Tensor
    attention: AttentionWeights
    post_attention_norm: Tensor
    mlp: DenseWeights | MoeWeights


@dataclass(frozen=True)
class ModelWeights:
    """The dtype of ``norm`` is that of the activations."""

    embedding: Tensor  # [vocab, H], of any float dtype
    layers: tuple[LayerWeights, ...]
    norm: Tensor
    head: Tensor | PackedMatrix  # [vocab, H]


def assemble_weights(
    tensors: Mapping[str, Tensor],
    config: ModelConfig,
    dtype: torch.dtype,
    device: torch.device,
    on_loaded: Callable[[int], None] = lambda _bytes: None,
) -> ModelWeights:
    """Bring published tensors to dtype and device and into the structure of the decoder.

    A tensor that has both already stays the memory-mapped view that it is.

    Args:
        tensors: name to tensor, complete and checked.
        config: the model's.
        dtype: of all weights but the routers.
        device: where to put them.
        on_loaded: told the published bytes of each tensor that is done.
    """

    def take(name: str, kind: torch.dtype = dtype) -> Tensor:
        tensor = tensors[name].to(device=device, dtype=kind).contiguous()
        on_loaded(tensors[name].nbytes)
        return tensor

    def projection(prefix: str) -> Projection:
        bias = take(f"{prefix}.bias") if config.attention_bias else None
        return Projection(take(f"{prefix}.weight"), bias)

    def swiglu(prefix: str) -> SwigluWeights:
        return SwigluWeights(*(take(f"{prefix}{name}.weight") for name in PROJECTIONS))

    def moe(prefix: str) -> MoeWeights:
        experts = [swiglu(f"{prefix}experts.{number}.") for number in range(config.num_experts)]
        if config.num_shared_experts:
            experts += split_shared(swiglu(f"{prefix}shared_experts."), config.num_shared_experts)
        return MoeWeights(take(f"{prefix}router.weight", torch.float32), tuple(experts))

    def layer(number: int) -> LayerWeights:
        prefix = layer_prefix(number)
        attention = f"{prefix}self_attn."
        return LayerWeights(
            input_norm=take(f"{prefix}input_layernorm.weight"),
            attention=AttentionWeights(
                qkv=tuple(projection(f"{attention}{name}_proj") for name in "qkv"),
                o=projection(f"{attention}o_proj"),
            ),
            post_attention_norm=take(f"{prefix}post_attention_layernorm.weight"),
            mlp=moe(f"{prefix}mlp.") if config.is_moe else DenseWeights((swiglu(f"{prefix}mlp."),)),
        )

    embedding = take(EMBEDDING)
    return ModelWeights(
        embedding=embedding,
        layers=tuple(layer(number) for number in range(config.num_layers)),
        norm=take(FINAL_NORM),
        head=embedding if config.tie_word_embeddings else take(HEAD),
    )


def split_shared(shared: SwigluWeights, count: int) -> list[SwigluWeights]:
    """The one published shared MLP as ``count`` experts of the routed width; nothing is copied.

    SwiGLU works on every column of the width by itself, so the sum of the parts is the whole.
    """
    parts = zip(
        shared.gate.chunk(count),
        shared.up.chunk(count),
        shared.down.chunk(count, dim=1),
        strict=True,
    )
    return [SwigluWeights(gate, up, down) for gate, up, down in parts]
