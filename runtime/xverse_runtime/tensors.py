"""Which tensors a model of a given configuration has: published names and shapes."""

from __future__ import annotations

from xverse_runtime.config import ModelConfig

EMBEDDING = "model.embed_tokens.weight"
FINAL_NORM = "model.norm.weight"
HEAD = "lm_head.weight"
PROJECTIONS = ("gate_proj", "up_proj", "down_proj")


def layer_prefix(layer: int) -> str:
    return f"model.layers.{layer}."


def expected_tensors(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name to shape, weights as [out, in]. With tied embeddings there is no head."""
    hidden = config.hidden_size
    shapes: dict[str, tuple[int, ...]] = {
        EMBEDDING: (config.vocab_size, hidden),
        FINAL_NORM: (hidden,),
    }
    if not config.tie_word_embeddings:
        shapes[HEAD] = (config.vocab_size, hidden)
    for layer in range(config.num_layers):
        prefix = layer_prefix(layer)
        shapes[f"{prefix}input_layernorm.weight"] = (hidden,)
        shapes[f"{prefix}post_attention_layernorm.weight"] = (hidden,)
        shapes |= _attention(config, f"{prefix}self_attn.")
        shapes |= _mlp(config, f"{prefix}mlp.")
    return shapes


def is_ignorable(name: str, config: ModelConfig) -> bool:
    """Tensors that published files carry and no model needs."""
    return name.endswith("rotary_emb.inv_freq") or (config.tie_word_embeddings and name == HEAD)


def _attention(config: ModelConfig, prefix: str) -> dict[str, tuple[int, ...]]:
    hidden, kv_width = config.hidden_size, config.num_kv_heads * config.head_dim
    widths = {"q_proj": hidden, "k_proj": kv_width, "v_proj": kv_width, "o_proj": hidden}
    shapes: dict[str, tuple[int, ...]] = {}
    for name, width in widths.items():
        shapes[f"{prefix}{name}.weight"] = (width, hidden)
        if config.attention_bias:
            shapes[f"{prefix}{name}.bias"] = (width,)
    return shapes


def _mlp(config: ModelConfig, prefix: str) -> dict[str, tuple[int, ...]]:
    width = config.intermediate_size
    if not config.is_moe:
        return _swiglu(prefix, config.hidden_size, width)
    shapes: dict[str, tuple[int, ...]] = {
        f"{prefix}router.weight": (config.num_experts, config.hidden_size)
    }
    for expert in range(config.num_experts):
        shapes |= _swiglu(f"{prefix}experts.{expert}.", config.hidden_size, width)
    if config.num_shared_experts:
        shared_width = config.num_shared_experts * width
        shapes |= _swiglu(f"{prefix}shared_experts.", config.hidden_size, shared_width)
    return shapes


def _swiglu(prefix: str, hidden: int, width: int) -> dict[str, tuple[int, ...]]:
    gate, up, down = PROJECTIONS
    return {
        f"{prefix}{gate}.weight": (width, hidden),
        f"{prefix}{up}.weight": (width, hidden),
        f"{prefix}{down}.weight": (hidden, width),
    }
