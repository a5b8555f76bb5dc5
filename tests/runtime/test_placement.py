"""Whole models on a device, and experts in pinned memory, read from their files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.fake_device import FakeDevice
from tests.fake_link import FakeLink
from tests.runtime.helpers import CPU, GOLDEN
from xverse_kernels.packing import BF16, FP16, ExpertBlocks, ExpertLayout, PackedMatrix
from xverse_runtime.checkpoint import read_checkpoint
from xverse_runtime.config import ModelConfig
from xverse_runtime.errors import IntegrityError
from xverse_runtime.host_reader import HostReader, copy_each
from xverse_runtime.loading import load_weights
from xverse_runtime.mapped_files import MappedFiles, fill
from xverse_runtime.model_dir import ModelDirectory
from xverse_runtime.offload.host_experts import HostExperts
from xverse_runtime.placement import place_weights
from xverse_runtime.store.manifest import Manifest
from xverse_runtime.store.precision import PRESETS
from xverse_runtime.store.synthetic import A4_2B, write_synthetic_store
from xverse_runtime.store.weights import open_store
from xverse_runtime.upload import Uploader
from xverse_runtime.weights import DenseWeights, ModelWeights, MoeWeights, assemble_weights

SLOW = 20e6  # bytes a second: a late copy is seen to be late
TINY = A4_2B | {
    "hidden_size": 64,
    "intermediate_size": 32,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "num_experts": 6,
    "vocab_size": 2050,
}


def store_weights(path: Path, dtype: torch.dtype, files: MappedFiles | None) -> ModelWeights:
    directory = ModelDirectory.open(path)
    config = ModelConfig.from_dir(directory)
    manifest = Manifest.read(directory)
    return open_store(directory, config, manifest, dtype, as_stored=True, files=files)


def raw(weight: Tensor | PackedMatrix) -> Tensor:
    return weight.data if isinstance(weight, PackedMatrix) else weight


@pytest.mark.parametrize("precision", PRESETS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_store_arrives_whole(
    precision: str, dtype: torch.dtype, tmp_path: Path, demo_dir: Path
) -> None:
    path = tmp_path / "store"
    write_synthetic_store(TINY, path, PRESETS[precision], demo_dir)
    wanted = store_weights(path, dtype, None)
    with MappedFiles() as files:
        mapped = store_weights(path, dtype, files)
        uploader = Uploader(FakeLink(5 * SLOW), files, readers=3, piece_bytes=1 << 14)
        with uploader:
            placed = place_weights(mapped, BF16, dtype, uploader)
    assert torch.equal(placed.embedding, wanted.embedding.to(dtype))
    assert torch.equal(raw(placed.head), raw(wanted.head).to(raw(placed.head).dtype))
    assert torch.equal(placed.norm, wanted.norm)
    for there, here in zip(placed.layers, wanted.layers, strict=True):
        assert isinstance(there.mlp, MoeWeights)
        assert isinstance(here.mlp, MoeWeights)
        assert isinstance(there.mlp.experts, ExpertBlocks)
        assert isinstance(here.mlp.experts, ExpertBlocks)
        assert torch.equal(there.mlp.experts.blocks, here.mlp.experts.blocks)
        assert torch.equal(there.mlp.router, here.mlp.router)
        joined = torch.cat([raw(one.weight) for one in here.attention.qkv])
        (qkv,) = there.attention.qkv
        assert torch.equal(raw(qkv.weight), joined.to(raw(qkv.weight).dtype))
        assert torch.equal(there.input_norm, here.input_norm)


@pytest.mark.parametrize("name", ["moe-gqa", "moe-bin", "moe-safetensors"])
def test_a_published_checkpoint_becomes_blocks(name: str) -> None:
    """Read from its files, safetensors or pickled."""
    directory = ModelDirectory.open(GOLDEN / name)
    config = ModelConfig.from_dir(directory)
    with MappedFiles() as files:
        tensors = read_checkpoint(directory, config, files)
        for tensor in tensors.values():
            region = files.region(tensor)
            assert region is not None
            found = torch.frombuffer(bytearray(region.nbytes), dtype=torch.uint8)
            fill(found, tensor, region)
            assert torch.equal(found, tensor.view(-1).view(torch.uint8))
        wanted = assemble_weights(tensors, config, next(iter(tensors.values())).dtype, CPU)
        with Uploader(FakeLink(SLOW), files, readers=2, piece_bytes=1 << 16) as uploader:
            placed = place_weights(wanted, FP16, torch.float16, uploader)
    layout = ExpertLayout(config.hidden_size, config.intermediate_size, FP16)
    for there, here in zip(placed.layers, wanted.layers, strict=True):
        assert isinstance(here.mlp, MoeWeights | DenseWeights)
        assert isinstance(there.mlp, MoeWeights)
        assert isinstance(there.mlp.experts, ExpertBlocks)
        packed = torch.stack([layout.pack(expert) for expert in here.mlp.experts])
        assert torch.equal(there.mlp.experts.blocks, packed)


def test_layers_are_pinned_from_files(tmp_path: Path, demo_dir: Path) -> None:
    path = tmp_path / "store"
    write_synthetic_store(TINY, path, PRESETS["int4"], demo_dir)
    with MappedFiles() as files, HostReader(files) as reader:
        layers = []
        for layer in store_weights(path, torch.float32, files).layers:
            assert isinstance(layer.mlp, MoeWeights)
            assert isinstance(layer.mlp.experts, ExpertBlocks)
            layers.append(layer.mlp.experts)
        by_file, by_torch = HostExperts(layers, 6), HostExperts(layers, 6)
        by_file.pin(FakeDevice(), 1 << 40, copy=reader.copy)
        by_torch.pin(FakeDevice(), 1 << 40, copy=copy_each)
        assert by_file.pinned_layers == by_torch.pinned_layers == 2
        for key in [(layer, expert) for layer in range(2) for expert in range(6)]:
            assert torch.equal(by_file.block(key), by_torch.block(key))
        os.truncate(path / "layer-00001.safetensors", 5000)
        unpinned = HostExperts(layers, 6)
        with pytest.raises(IntegrityError, match="ends at"):
            unpinned.pin(FakeDevice(), 1 << 40, copy=reader.copy)
        assert unpinned.pinned_layers == 1


@pytest.mark.parametrize("published", [False, True])
def test_a_model_is_loaded_with_progress(published: bool, tmp_path: Path, demo_dir: Path) -> None:
    """The whole way, as for a GPU: every file is read, and progress ends at the end."""
    path = GOLDEN / "moe-safetensors"
    if not published:
        path = tmp_path / "store"
        write_synthetic_store(TINY, path, PRESETS["int4"], demo_dir)
    directory, told = ModelDirectory.open(path), []
    config = ModelConfig.from_dir(directory)
    with MappedFiles() as files:
        loaded = load_weights(
            directory, config, "auto", CPU, 64, told.append, kernels="triton", files=files
        )
        plain = load_weights(directory, config, "auto", CPU, 64, told.append, kernels="triton")
    assert [one.done_bytes for one in told][-1] == told[-1].total_bytes
    for one, other in zip(loaded.weights.layers, plain.weights.layers, strict=True):
        assert isinstance(one.mlp, MoeWeights)
        assert isinstance(other.mlp, MoeWeights)
        assert isinstance(one.mlp.experts, ExpertBlocks)
        assert isinstance(other.mlp.experts, ExpertBlocks)
        assert torch.equal(one.mlp.experts.blocks, other.mlp.experts.blocks)
