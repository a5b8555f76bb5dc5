"""`config.json` of the whole family, absent keys, and values that must be refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from xverse_runtime.config import ModelConfig, RopeScaling
from xverse_runtime.errors import IntegrityError, UnsupportedModelError
from xverse_runtime.model_dir import ModelDirectory

BASE: dict[str, Any] = {
    "architectures": ["XverseForCausalLM"],
    "model_type": "xverse",
    "hidden_act": "silu",
    "hidden_size": 2560,
    "intermediate_size": 1728,
    "num_attention_heads": 32,
    "num_hidden_layers": 28,
    "vocab_size": 100534,
    "max_position_embeddings": 8192,
    "pad_token_id": 1,
    "bos_token_id": 2,
    "eos_token_id": 3,
    "rope_theta": 500000,
    "num_experts": 64,
    "moe_top_k": 6,
    "num_shared_experts": 2,
}


def config_with(**changes: Any) -> ModelConfig:
    data = {key: value for key, value in (BASE | changes).items() if value is not ...}
    return ModelConfig.from_dict(data)


def test_the_chat_model() -> None:
    config = config_with()
    assert (config.head_dim, config.num_kv_heads, config.trained_context) == (80, 32, 8192)
    assert (config.num_experts, config.top_k, config.num_shared_experts) == (64, 6, 2)
    assert config.eos_token_ids == (3,)
    assert config.is_moe


def test_absent_keys_take_the_vendors_defaults() -> None:
    config = config_with(rope_theta=..., moe_top_k=..., num_experts=..., rms_norm_eps=...)
    assert (config.rope_theta, config.top_k, config.num_experts) == (10000.0, 6, 64)
    assert config.rms_norm_eps == 1e-6
    assert not config.tie_word_embeddings
    assert not config.attention_bias


def test_dense_models_have_no_experts() -> None:
    config = config_with(num_experts=..., moe_top_k=..., num_shared_experts=...)
    assert not config.is_moe
    assert (config.num_experts, config.top_k, config.num_shared_experts) == (0, 0, 0)


def test_the_larger_models() -> None:
    a36b = config_with(
        architectures=["XverseMoeForCausalLM"],
        hidden_size=6144,
        num_attention_heads=48,
        num_key_value_heads=16,
        rms_norm_eps=1e-5,
        num_shared_experts=None,
    )
    assert (a36b.head_dim, a36b.num_kv_heads, a36b.num_shared_experts) == (128, 16, 0)


def test_several_end_tokens() -> None:
    assert config_with(eos_token_id=[3, 7]).eos_token_ids == (3, 7)
    assert config_with(eos_token_id=None).eos_token_ids == ()


def test_rope_scaling() -> None:
    linear = config_with(rope_scaling={"type": "linear", "factor": 2})
    assert linear.rope_scaling == RopeScaling("linear", 2.0)
    assert linear.trained_context == 16384
    dynamic = config_with(rope_scaling={"rope_type": "dynamic", "factor": 4.0})
    assert dynamic.trained_context == 8192
    assert dynamic.maximum_context == 32768


def test_dynamic_scaling_needs_a_head_size_above_2() -> None:
    """Its formula divides by the head size less two."""
    config_with(hidden_size=64, rope_scaling={"type": "linear", "factor": 2})
    with pytest.raises(UnsupportedModelError) as caught:
        config_with(hidden_size=64, rope_scaling={"type": "dynamic", "factor": 2})
    assert caught.value.params["key"] == "num_attention_heads"


@pytest.mark.parametrize(
    ("changes", "code", "key"),
    [
        ({"hidden_act": "gelu"}, "config.unsupported", "hidden_act"),
        ({"model_type": "qwen2", "architectures": None}, "config.unsupported", "model_type"),
        ({"architectures": ["LlamaForCausalLM"]}, "config.unsupported", "architectures"),
        ({"norm_topk_prob": False}, "config.unsupported", "norm_topk_prob"),
        ({"quantization_config": {"bits": 4}}, "config.unsupported", "quantization_config"),
        ({"sliding_window": 4096}, "config.unsupported", "sliding_window"),
        ({"rope_scaling": {"type": "yarn"}}, "config.unsupported", "rope_scaling.type"),
        ({"rope_scaling": {"type": "linear"}}, "config.bad_value", "rope_scaling.factor"),
        ({"rope_scaling": "linear"}, "config.bad_value", "rope_scaling"),
        ({"hidden_size": ...}, "config.missing_key", "hidden_size"),
        ({"hidden_size": -1}, "config.bad_value", "hidden_size"),
        ({"hidden_size": 2**40}, "config.bad_value", "hidden_size"),
        ({"hidden_size": 2560.0}, "config.bad_value", "hidden_size"),
        ({"hidden_size": "2560"}, "config.bad_value", "hidden_size"),
        ({"num_hidden_layers": True}, "config.bad_value", "num_hidden_layers"),
        ({"num_hidden_layers": 10**9}, "config.bad_value", "num_hidden_layers"),
        ({"num_attention_heads": 33}, "config.bad_value", "num_attention_heads"),
        ({"num_key_value_heads": 5}, "config.bad_value", "num_key_value_heads"),
        ({"moe_top_k": 65}, "config.bad_value", "moe_top_k"),
        ({"head_dim": 128}, "config.bad_value", "head_dim"),
        ({"rms_norm_eps": float("nan")}, "config.bad_value", "rms_norm_eps"),
        ({"rope_theta": 0}, "config.bad_value", "rope_theta"),
        ({"eos_token_id": -3}, "config.bad_value", "eos_token_id"),
        ({"tie_word_embeddings": "no"}, "config.bad_value", "tie_word_embeddings"),
    ],
)
def test_refused_by_key_and_value(changes: dict[str, Any], code: str, key: str) -> None:
    with pytest.raises(UnsupportedModelError) as caught:
        config_with(**changes)
    assert caught.value.code == code
    assert caught.value.params["key"] == key
    if code != "config.missing_key" and not key.startswith("rope_scaling."):
        value = changes.get(key, BASE.get(key))
        shown = value[0] if key == "architectures" else value
        assert str(caught.value.params["value"]) == str(shown)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[1]", b"\xff\xfe{}", b"[" * 100_000, b"null"], ids=range(6)
)
def test_a_config_that_is_not_json(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(IntegrityError) as caught:
        ModelConfig.from_dir(ModelDirectory.open(tmp_path))
    assert caught.value.code == "config.not_json"
    assert "config.json" in str(caught.value.params["path"])
