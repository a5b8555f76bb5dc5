"""Make ``tests/golden/dense-*``: dense checkpoints with logits by software we did not write.

The dense models of the family compute what LLaMA computes, so transformers' LlamaForCausalLM is
the oracle. Needs transformers (made with 5.23.0 and torch 2.13.0); the results are committed.

    python tools/make_dense_golden.py tests/golden
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

SHAPE: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-6,
}
# Name -> what differs, and how many tokens to compute.
CASES: dict[str, tuple[dict[str, Any], int]] = {
    "dense-linear": (
        {
            "num_key_value_heads": 2,
            "attention_bias": True,
            "rope_scaling": {"type": "linear", "factor": 2.0},
        },
        100,
    ),
    "dense-dynamic": (
        {"tie_word_embeddings": True, "rope_scaling": {"type": "dynamic", "factor": 2.0}},
        100,
    ),
}


def main(target: Path) -> None:
    for name, (differences, length) in CASES.items():
        torch.manual_seed(7)
        settings = SHAPE | {"tie_word_embeddings": False} | differences
        scaling = settings["rope_scaling"]
        rope = {"rope_type": scaling["type"], "factor": scaling["factor"], "rope_theta": 10000.0}
        library = LlamaConfig(**(settings | {"rope_scaling": None, "rope_parameters": rope}))
        library._attn_implementation = "eager"
        model = LlamaForCausalLM(library).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(0, 0.3) if parameter.dim() > 1 else parameter.uniform_(0.5, 1.5)
        ids = torch.randint(0, settings["vocab_size"], (1, length))
        with torch.no_grad():
            logits = model(ids, use_cache=False).logits[0]
        folder = target / name
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {key: value.contiguous() for key, value in model.state_dict().items()}
        if settings["tie_word_embeddings"]:
            tensors.pop("lm_head.weight", None)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        save_file({"ids": ids[0], "logits": logits}, folder / "expected.safetensors")
        config = settings | {"model_type": "xverse", "architectures": ["XverseForCausalLM"]}
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
