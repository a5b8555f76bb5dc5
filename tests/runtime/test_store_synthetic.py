"""Synthetic stores, and the choice of a precision."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.runtime.helpers import CPU
from xverse_kernels.backend import select_backend
from xverse_runtime.config import ModelConfig
from xverse_runtime.kv_cache import KVCache, KVPool
from xverse_runtime.loading import load_weights
from xverse_runtime.model import Decoder
from xverse_runtime.model_dir import ModelDirectory
from xverse_runtime.rope import RotaryTable
from xverse_runtime.store.layout import StoreLayout
from xverse_runtime.store.precision import (
    PRESETS,
    bytes_per_token,
    choose_precision,
    measure_read_bandwidth,
)
from xverse_runtime.store.synthetic import A4_2B, write_synthetic_store
from xverse_runtime.store.verify import verify_store

SMALL = A4_2B | {
    "hidden_size": 320,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "vocab_size": 2050,
}


@pytest.mark.parametrize("precision", PRESETS)
def test_activations_stay_finite_and_routing_is_even_through_28_layers(
    precision: str, tmp_path: Path, demo_dir: Path
) -> None:
    path = tmp_path / "store"
    write_synthetic_store(SMALL, path, PRESETS[precision], demo_dir)
    verify_store(path)
    directory = ModelDirectory.open(path)
    config = ModelConfig.from_dir(directory)
    weights = load_weights(directory, config, "fp32", CPU, 64, lambda _progress: None).weights
    decoder = Decoder(config, weights, select_backend("auto", CPU), RotaryTable(config, 64, CPU))
    routers: list[torch.Tensor] = []
    logits = decoder.forward(
        range(5, 69),
        KVCache(KVPool(config, 64, torch.float32, CPU)),
        logits_for=slice(None),
        observer=lambda _layer, scores: routers.append(scores),
    )
    assert 0.5 < logits.std() < 2
    assert all(0.8 < scores.std() < 1.25 for scores in routers)
    chosen = torch.cat([scores.topk(6).indices.flatten() for scores in routers])
    loads = torch.bincount(chosen, minlength=64).float()
    assert (loads / loads.mean()).min() > 0.4
    assert (loads / loads.mean()).max() < 2


def test_the_same_seed_gives_the_same_store(tmp_path: Path, demo_dir: Path) -> None:
    shape = SMALL | {"num_hidden_layers": 1, "num_experts": 4, "moe_top_k": 2}
    stores = [
        write_synthetic_store(shape, tmp_path / str(n), PRESETS["int4"], demo_dir, seed=seed)
        for n, seed in enumerate((0, 0, 1))
    ]
    assert stores[0] == stores[1]
    assert stores[0] != stores[2]


def test_the_true_shape_has_the_published_sizes() -> None:
    config = ModelConfig.from_dict(A4_2B)
    layout = StoreLayout(config, PRESETS["int4"])
    assert layout.blocks_per_layer * config.num_layers == 66 * 28
    total = sum(spec.nbytes for file in layout.files() for spec in file.specs)
    assert 14.5e9 < total < 15.5e9
    assert bytes_per_token(config, PRESETS["bf16"]) == pytest.approx(7.95e9, rel=0.02)
    assert bytes_per_token(config, PRESETS["int4"]) == pytest.approx(2.70e9, rel=0.02)


@pytest.mark.parametrize(
    ("bandwidth", "name"), [(200e9, "bf16"), (80e9, "int8"), (50e9, "int4"), (1e9, "int4")]
)
def test_the_highest_precision_at_reading_speed(bandwidth: float, name: str) -> None:
    chosen, rate = choose_precision(ModelConfig.from_dict(A4_2B), bandwidth)
    assert chosen == name
    assert rate >= 15 or name == "int4"


def test_bandwidth_is_measured_in_a_believable_range() -> None:
    assert 5e8 < measure_read_bandwidth() < 2e12
