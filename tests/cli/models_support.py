"""What the tests of the models on this machine share: a Hub cache, and ways to fill it."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from tests.cli.pull_support import REPO
from xverse_cli.models.download.partial_file import PartialFile
from xverse_cli.models.download.parts import Pinned
from xverse_cli.models.download.remote import RemoteFile
from xverse_cli.models.hub_folder import HubFolder

OLD, NEW = "a" * 40, "b" * 40


@pytest.fixture(autouse=True)
def cache(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The Hub's cache, empty."""
    place = home / "hub"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(place))
    return place


def add(
    files: dict[str, bytes], repo: str = REPO, commit: str = NEW, branch: str = "main"
) -> HubFolder:
    """A revision in the cache as the Hub's tools leave it: small files by git id, large by SHA."""
    folder = HubFolder.of(repo)
    folder.blobs.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        digest = hashlib.sha256(data).hexdigest()
        if name.endswith(".json"):
            digest = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        (folder.blobs / digest).write_bytes(data)
        folder.link(commit, name, digest)
    folder.set_branch(branch, commit)
    return folder


def add_golden(golden: Path, repo: str = REPO, commit: str = NEW) -> HubFolder:
    return add({one.name: one.read_bytes() for one in (golden / "moe-bin").iterdir()}, repo, commit)


def begin(folder: HubFolder, name: str, data: bytes, commit: str = NEW) -> str:
    """A download of which the first half is there; its digest."""
    digest = hashlib.sha256(data).hexdigest()
    folder.work.mkdir(parents=True, exist_ok=True)
    pinned = Pinned(digest, len(data), name, folder.repo, commit, "huggingface")
    file = RemoteFile(name, len(data), digest, None)
    partial = PartialFile(file, folder.blobs / digest, folder.work, pinned)
    partial.table.advance(0, 0, len(data) // 2)
    partial.close()
    return digest


def files_below(place: Path) -> set[Path]:
    return {path for path in place.rglob("*") if not path.is_dir()} if place.exists() else set()


def damage(file: Path, at: int = 100) -> None:
    data = bytearray(file.read_bytes())
    data[at] ^= 1
    file.resolve().write_bytes(data)
