"""What the tests of `xverse pull` share: a hub, a model on it, and little patience."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hub_server import HubServer
from xverse_cli.models import pull
from xverse_cli.models.download import parts
from xverse_cli.models.download.patience import Patience

REPO = "xverse/XVERSE-Test-Chat"
PART = 2**16
HURRIED = Patience(
    tries=3, first_wait_s=0.01, longest_wait_s=0.05, connect_s=2, stall_s=0.4, receive_buffer=2**15
)
CONFIG = json.dumps({"model_type": "xverse", "architectures": ["XverseForCausalLM"]}).encode()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, home: Path) -> Iterator[HubServer]:
    """A hub that the real client and the downloader talk to, from an empty home."""
    with HubServer() as server:
        constants = "huggingface_hub.constants."
        monkeypatch.setattr(constants + "ENDPOINT", server.url)
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants + "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants + "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants + "HF_HUB_CACHE", str(home / "hub"))
        monkeypatch.setenv("MODELSCOPE_DOMAIN", server.url)
        monkeypatch.setattr(pull, "PATIENCE", HURRIED)
        monkeypatch.setattr(parts, "PART_BYTES", PART)
        yield server


def noise(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


def two_shards(size: int = 10 * PART + 123) -> dict[str, bytes]:
    """A repository that looks like the published one; its weights are noise."""
    names = [f"pytorch_model-0000{number}-of-00002.bin" for number in (1, 2)]
    index = {"weight_map": {"a": names[0], "b": names[1]}}
    return {
        "config.json": CONFIG,
        "tokenizer.json": b"{}",
        "pytorch_model.bin.index.json": json.dumps(index).encode(),
        names[0]: noise(size, 1),
        names[1]: noise(size // 2, 2),
    }


@pytest.fixture
def golden_files(golden: Path) -> dict[str, bytes]:
    """A checkpoint in two shards that can be run."""
    files = contents(golden / "moe-bin")
    return {name: data for name, data in files.items() if not name.startswith("expected")}


def snapshot(home: Path, commit: str, repo: str = REPO) -> Path:
    return home / "hub" / f"models--{repo.replace('/', '--')}" / "snapshots" / commit


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
