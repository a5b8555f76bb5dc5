"""Writes a trained model in the published layout, and reads it back for evaluation."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tools.demo.model import DemoConfig, DemoModel
from tools.demo.tokenizer import BOS_ID, EOS_ID, PAD_ID

# Written into the configuration files as the published ones have it; nothing depends on it.
_TRANSFORMERS_VERSION = "4.38.2"


def export(model: DemoModel, tokenizer_model: bytes, directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    save_file(published_tensors(model), directory / "model.safetensors", {"format": "pt"})
    (directory / "model.safetensors").chmod(0o644)  # the library makes it private
    (directory / "tokenizer.model").write_bytes(tokenizer_model)
    for name, content in _json_files(model.config).items():
        text = json.dumps(content, indent=2, ensure_ascii=False)
        (directory / name).write_text(text + "\n", encoding="utf-8")


def published_tensors(model: DemoModel) -> dict[str, Tensor]:
    """Published names; bf16, routers in fp32. Gate and up are apart, experts are numbered."""
    tensors: dict[str, Tensor] = {}
    for name, parameter in model.state_dict().items():
        base = "" if name.startswith("lm_head") else "model."
        prefix, _, last = name.rpartition(".")
        if last == "gate_up":
            for expert, gate_up in enumerate(parameter.unbind()):
                _put_gate_up(tensors, f"{base}{prefix}.experts.{expert}", gate_up)
        elif last == "down":
            for expert, down in enumerate(parameter.unbind()):
                tensors[f"{base}{prefix}.experts.{expert}.down_proj.weight"] = down
        elif last == "shared_gate_up":
            _put_gate_up(tensors, f"{base}{prefix}.shared_experts", parameter)
        elif last == "shared_down":
            tensors[f"{base}{prefix}.shared_experts.down_proj.weight"] = parameter
        else:
            tensors[base + name] = parameter
    return {name: tensor.to(_dtype(name)).contiguous() for name, tensor in sorted(tensors.items())}


def as_published(model: DemoModel) -> DemoModel:
    """A copy for evaluation whose weights have the published precision."""
    copy = DemoModel(model.config)
    state = {name: p.to(_dtype(name)).to(p.dtype) for name, p in model.state_dict().items()}
    copy.load_state_dict(state)
    return copy.eval()


def _dtype(name: str) -> torch.dtype:
    return torch.float32 if ".router." in name else torch.bfloat16


def _put_gate_up(tensors: dict[str, Tensor], prefix: str, gate_up: Tensor) -> None:
    gate, up = gate_up.chunk(2)
    tensors[f"{prefix}.gate_proj.weight"] = gate
    tensors[f"{prefix}.up_proj.weight"] = up


def load_exported(directory: Path) -> DemoModel:
    """The exported weights, upcast to fp32, in evaluation mode."""
    content = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    config = DemoConfig(
        vocab_size=content["vocab_size"],
        hidden_size=content["hidden_size"],
        num_heads=content["num_attention_heads"],
        num_layers=content["num_hidden_layers"],
        expert_width=content["intermediate_size"],
        num_experts=content["num_experts"],
        top_k=content["moe_top_k"],
        num_shared_experts=content["num_shared_experts"],
        rope_theta=content["rope_theta"],
        rms_norm_eps=content["rms_norm_eps"],
        max_positions=content["max_position_embeddings"],
    )
    tensors = {k: v.float() for k, v in load_file(directory / "model.safetensors").items()}
    model = DemoModel(config)
    state = {name: _stacked(tensors, name, config) for name in model.state_dict()}
    model.load_state_dict(state)
    return model.eval()


def _stacked(tensors: dict[str, Tensor], name: str, config: DemoConfig) -> Tensor:
    """The inverse of `published_tensors` for one parameter."""
    prefix, _, last = name.rpartition(".")
    prefix = f"model.{prefix}"
    experts = [f"{prefix}.experts.{expert}" for expert in range(config.num_experts)]
    if last == "gate_up":
        return torch.stack([_gate_up(tensors, expert) for expert in experts])
    if last == "down":
        return torch.stack([tensors[f"{expert}.down_proj.weight"] for expert in experts])
    if last == "shared_gate_up":
        return _gate_up(tensors, f"{prefix}.shared_experts")
    if last == "shared_down":
        return tensors[f"{prefix}.shared_experts.down_proj.weight"]
    return tensors[name if name.startswith("lm_head") else f"model.{name}"]


def _gate_up(tensors: dict[str, Tensor], prefix: str) -> Tensor:
    return torch.cat((tensors[f"{prefix}.gate_proj.weight"], tensors[f"{prefix}.up_proj.weight"]))


def _json_files(config: DemoConfig) -> dict[str, dict[str, Any]]:
    ids = {"pad_token_id": PAD_ID, "bos_token_id": BOS_ID, "eos_token_id": EOS_ID}
    special = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "pad_token": "<pad>"}
    return {
        "config.json": {
            "_name_or_path": "XVERSE-MoE-Demo-Chat",
            "architectures": ["XverseForCausalLM"],
            **ids,
            "hidden_act": "silu",
            "hidden_size": config.hidden_size,
            "initializer_range": 0.02,
            "intermediate_size": config.expert_width,
            "max_position_embeddings": config.max_positions,
            "max_tokenizer_truncation": config.max_positions * 3 // 4,
            "model_type": "xverse",
            "num_attention_heads": config.num_heads,
            "num_hidden_layers": config.num_layers,
            "rms_norm_eps": config.rms_norm_eps,
            "tie_word_embeddings": False,
            "rope_theta": int(config.rope_theta),
            "moe_top_k": config.top_k,
            "num_experts": config.num_experts,
            "num_shared_experts": config.num_shared_experts,
            "output_router_logits": False,
            "router_aux_loss_coef": 0.01,
            "torch_dtype": "bfloat16",
            "transformers_version": _TRANSFORMERS_VERSION,
            "use_cache": True,
            "vocab_size": config.vocab_size,
        },
        "generation_config.json": {
            **ids,
            "max_new_tokens": 512,
            # Low: the demo knows one right answer to a question.
            "temperature": 0.2,
            "top_k": 30,
            "top_p": 0.85,
            "repetition_penalty": 1.0,
            "do_sample": True,
            "transformers_version": _TRANSFORMERS_VERSION,
        },
        "tokenizer_config.json": {
            "add_bos_token": False,
            "add_eos_token": False,
            **special,
            "unk_token": "<unk>",
            "clean_up_tokenization_spaces": False,
            "legacy": False,
            "model_max_length": config.max_positions,
            "tokenizer_class": "LlamaTokenizer",
        },
        "special_tokens_map.json": {**special, "unk_token": "<unk>"},
    }
