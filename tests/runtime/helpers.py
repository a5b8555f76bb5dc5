"""Loading parts of the runtime without an engine."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from xverse_kernels.backend import select_backend
from xverse_runtime.checkpoint import read_checkpoint
from xverse_runtime.config import ModelConfig
from xverse_runtime.kv_cache import KVCache, KVPool
from xverse_runtime.model import Decoder
from xverse_runtime.model_dir import ModelDirectory
from xverse_runtime.rope import RotaryTable
from xverse_runtime.weights import assemble_weights

GOLDEN = Path(__file__).parents[1] / "golden"
MOE_CHECKPOINTS = ("moe-bin", "moe-gqa", "moe-safetensors")
CPU = torch.device("cpu")


def load_decoder(
    path: Path, dtype: torch.dtype = torch.float32, context: int | None = None
) -> tuple[Decoder, KVCache]:
    directory = ModelDirectory.open(path)
    config = ModelConfig.from_dir(directory)
    context = context or config.trained_context
    weights = assemble_weights(read_checkpoint(directory, config), config, dtype, CPU)
    kernels = select_backend("reference", CPU)
    decoder = Decoder(config, weights, kernels, RotaryTable(config, context, CPU))
    return decoder, KVCache(KVPool(config, context, dtype, CPU))


def expected_tensors_of(name: str) -> Mapping[str, Tensor]:
    return load_file(GOLDEN / name / "expected.safetensors")


def expected_cases(name: str) -> list[dict[str, Any]]:
    cases: list[dict[str, Any]] = json.loads((GOLDEN / name / "expected.json").read_text())
    return cases
