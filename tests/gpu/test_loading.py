"""Loading to a real device: bytes, dtypes, strided targets, memory that cannot be pinned, pace."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from bench.gpu.loading import link_bandwidth, loading_bandwidth
from xverse_runtime import link
from xverse_runtime.link import CudaLink
from xverse_runtime.mapped_files import MappedFiles, map_safetensors
from xverse_runtime.upload import Uploader

DEVICE = torch.device("cuda", 0)


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    path = tmp_path / "weights.safetensors"
    tensors = {
        "bytes": torch.randint(0, 256, (96 << 20,), dtype=torch.uint8),
        "halves": torch.randn(4096, 2560).to(torch.bfloat16),
        "one": torch.randn(1),
    }
    save_file(tensors, path)
    return path


def uploaded(path: Path, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    with MappedFiles() as files:
        mapped = map_safetensors(path, path.name, files)
        with Uploader(CudaLink(DEVICE), files) as uploader:
            placed = {name: uploader.to_device(one, dtype) for name, one in mapped.items()}
            uploader.finish()
            return {name: one.cpu() for name, one in placed.items()}


def test_bytes_arrive_as_they_are(shard: Path) -> None:
    wanted = map_safetensors(shard, shard.name)
    for _ in range(3):
        found = uploaded(shard)
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_numbers_are_converted_on_the_device(shard: Path) -> None:
    wanted, found = map_safetensors(shard, shard.name), uploaded(shard, torch.float16)
    assert all(torch.equal(found[name], wanted[name].half()) for name in wanted)


def test_targets_with_gaps(shard: Path) -> None:
    with MappedFiles() as files:
        source = map_safetensors(shard, shard.name, files)["halves"]
        pairs = torch.zeros(256, 2, 16, 2560, dtype=torch.bfloat16, device=DEVICE)
        with Uploader(CudaLink(DEVICE), files) as uploader:
            uploader.copy(source, pairs[:, 1])
            uploader.finish()
    assert torch.equal(pairs[:, 1].reshape(4096, 2560).cpu(), source)
    assert not bool(pairs[:, 0].any())


def test_memory_that_cannot_be_pinned(shard: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "pin_pages", lambda _memory, _device: False)
    wanted, found = map_safetensors(shard, shard.name), uploaded(shard)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_the_link_is_used(tmp_path: Path) -> None:
    """From the page cache: at least 80 % of the link, or of what the host reads."""
    path, size = tmp_path / "weights.safetensors", 2 << 30
    save_file({"all": torch.zeros(size, dtype=torch.uint8)}, path)
    rates = loading_bandwidth([path], rounds=4)
    assert max(rates.loading) >= 0.8 * min(link_bandwidth(DEVICE), max(rates.reading))
