"""Synthetic stores, and the choice of a precision."""

from __future__ import annotations

import shutil
from math import prod
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from tests.runtime.helpers import CPU
from xverse_kernels.backend import select_backend
from xverse_kernels.packing import BF16, unpack_matrix
from xverse_kernels.quantise import Quantised
from xverse_runtime.config import ModelConfig
from xverse_runtime.errors import XverseError
from xverse_runtime.kv_cache import KVCache, KVPool
from xverse_runtime.link import link_to
from xverse_runtime.loading import load_weights
from xverse_runtime.model import Decoder
from xverse_runtime.model_dir import ModelDirectory
from xverse_runtime.placement import place_weights
from xverse_runtime.rope import RotaryTable
from xverse_runtime.store import place
from xverse_runtime.store.layout import StoreLayout
from xverse_runtime.store.manifest import Manifest
from xverse_runtime.store.precision import (
    PRESETS,
    bytes_per_token,
    measure_read_bandwidth,
)
from xverse_runtime.store.synthetic import A4_2B, write_synthetic_store
from xverse_runtime.store.verify import verify_store
from xverse_runtime.store.weights import open_store
from xverse_runtime.tensors import expected_tensors
from xverse_runtime.types import LoadProgress
from xverse_runtime.upload import Uploader

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


TINY = SMALL | {"num_hidden_layers": 1, "num_experts": 4, "moe_top_k": 2}


def test_int8_weights_are_symmetric(tmp_path: Path, demo_dir: Path) -> None:
    path = tmp_path / "store"
    write_synthetic_store(TINY, path, PRESETS["int8"], demo_dir)
    directory = ModelDirectory.open(path)
    config = ModelConfig.from_dir(directory)
    layout = StoreLayout(config, PRESETS["int8"]).expert_layout
    with safe_open(path / "layer-00000.safetensors", framework="pt") as file:
        block = file.get_tensor("model.layers.0.mlp.experts")[0]
    gate_up = unpack_matrix(
        block[: layout.gate_up_bytes], 2 * layout.width, layout.hidden, layout.form
    )
    assert isinstance(gate_up, Quantised)
    assert gate_up.q.min() == -127
    assert gate_up.q.max() == 127
    assert gate_up.dequantise().std() * layout.hidden**0.5 == pytest.approx(1, abs=0.03)


def test_a_synthetic_store_has_one_writer_and_needs_room(
    tmp_path: Path, demo_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def code(output: str) -> str:
        with pytest.raises(XverseError) as caught:
            write_synthetic_store(TINY, tmp_path / output, PRESETS["int4"], demo_dir)
        return caught.value.code

    seen: list[str] = []

    def try_too(_progress: LoadProgress) -> None:
        if not seen:
            seen.append(code("out"))

    (tmp_path / "other.partial").mkdir()
    (tmp_path / "other.partial" / "thesis.txt").write_text("years of work")
    assert code("other") == "store.target_exists"
    assert (tmp_path / "other.partial" / "thesis.txt").exists()
    write_synthetic_store(TINY, tmp_path / "out", PRESETS["int4"], demo_dir, progress=try_too)
    assert seen == ["store.busy"]
    assert code("out") == "store.target_exists"
    verify_store(tmp_path / "out")
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(place.shutil, "disk_usage", lambda _path: usage)
    assert code("more") == "store.disk_full"
    monkeypatch.undo()
    write_synthetic_store(TINY, tmp_path / "more", PRESETS["int4"], demo_dir)


def test_an_automatic_precision_counts_weights_not_bytes(
    tmp_path: Path, demo_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In int4 the bytes are half of the weights: they would choose fp32 for too large a model."""
    path = tmp_path / "store"
    write_synthetic_store(TINY, path, PRESETS["int4"], demo_dir)
    directory = ModelDirectory.open(path)
    config = ModelConfig.from_dir(directory)
    weights = sum(prod(shape) for shape in expected_tensors(config).values())
    stored = sum(file.stat().st_size for file in path.iterdir())
    assert stored < 4 * weights
    for limit, dtype in ((4 * weights, torch.float32), (4 * weights - 4, torch.bfloat16)):
        monkeypatch.setattr("xverse_runtime.device.SMALL_MODEL_BYTES", limit)
        loaded = load_weights(directory, config, "auto", CPU, 64, lambda _progress: None)
        assert loaded.cache_dtype == dtype


def test_bandwidth_is_measured_in_a_believable_range() -> None:
    assert 5e8 < measure_read_bandwidth() < 2e12


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_tied_embedding_is_on_the_device_once(
    dtype: torch.dtype, tmp_path: Path, demo_dir: Path
) -> None:
    """Also where it has to be converted, as for GPUs without bf16."""
    path = tmp_path / "store"
    shape = SMALL | {"num_hidden_layers": 1, "num_experts": 6, "tie_word_embeddings": True}
    write_synthetic_store(shape, path, PRESETS["int4"], demo_dir)
    directory = ModelDirectory.open(path)
    config = ModelConfig.from_dir(directory)
    assert config.tie_word_embeddings
    weights = open_store(directory, config, Manifest.read(directory), dtype)
    with Uploader(link_to(CPU)) as uploader:
        placed = place_weights(weights, BF16, dtype, uploader)
    assert isinstance(placed.head, torch.Tensor)
    assert placed.head.data_ptr() == placed.embedding.data_ptr()
    assert placed.embedding.dtype == dtype
    stored = open_store(directory, config, Manifest.read(directory), torch.bfloat16).embedding
    assert torch.equal(placed.embedding, stored.to(dtype))
