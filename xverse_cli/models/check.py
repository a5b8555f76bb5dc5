"""Whether the files of a model are what they should be: read whole, against their digests."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xverse_cli.models.hub_cache import missing_files
from xverse_cli.models.hub_folder import HubFolder
from xverse_runtime.model_dir import ModelDirectory
from xverse_runtime.store.manifest import Manifest, is_store
from xverse_runtime.store.verify import check_names, damaged_files, hash_file
from xverse_runtime.types import LoadProgress, ProgressCallback

PIECE = 2**23
_SHA256 = re.compile("[0-9a-f]{64}")
_GIT_ID = re.compile("[0-9a-f]{40}")


@dataclass(frozen=True)
class CheckedFile:
    """``ok`` is ``None`` for a file of which no digest is known."""

    name: str
    bytes: int
    ok: bool | None


@dataclass(frozen=True)
class Check:
    """What came of reading a model. ``is_published``: it is a revision in the Hub's cache."""

    path: Path
    files: tuple[CheckedFile, ...]
    is_published: bool

    @property
    def broken(self) -> list[str]:
        return [file.name for file in self.files if file.ok is False]

    @property
    def unknown(self) -> list[str]:
        return [file.name for file in self.files if file.ok is None]

    @property
    def bytes(self) -> int:
        return sum(file.bytes for file in self.files)

    def to_json(self, model: str) -> dict[str, Any]:
        files = [{"name": file.name, "bytes": file.bytes, "ok": file.ok} for file in self.files]
        return {"model": model, "path": str(self.path), "files": files, "ok": not self.broken}


def check_store(path: Path, progress: ProgressCallback) -> Check:
    """Read all files of a converted model.

    Raises:
        IntegrityError: what `Manifest.read` and `check_names` raise; a changed file is no error.
    """
    directory = ModelDirectory.open(path)
    manifest = Manifest.read(directory, sizes=False)
    as_long = {
        name: record
        for name, record in manifest.files.items()
        if _size(path / name) == record.bytes and (path / name).is_file()
    }
    damaged = {*damaged_files(directory, as_long, progress), *(manifest.files.keys() - as_long)}
    if not damaged:
        check_names(directory, manifest)
    files = (
        CheckedFile(name, record.bytes, name not in damaged)
        for name, record in manifest.files.items()
    )
    return Check(path, tuple(files), is_published=False)


def check_snapshot(
    snapshot: Path, progress: ProgressCallback, only: Collection[str] | None = None
) -> Check:
    """Read the files of a revision in the Hub's cache, whose blobs are named by their digests.

    Args:
        snapshot: its directory.
        progress: told after every piece.
        only: names of the files to read; ``None`` reads all. Missing ones are told in any case.
    """
    names = [name for name in _names(snapshot) if only is None or name in only]
    sizes = {name: _size(snapshot / name) for name in names}
    total, done = sum(sizes.values()), 0
    checked = {}
    for name, size in sizes.items():
        ok = _is_whole(snapshot / name, _Counter(progress, done, total))
        checked[name] = CheckedFile(name, size, ok)
        done += size
    for name in missing_files(snapshot):
        checked.setdefault(name, CheckedFile(name, 0, False))
    if not any(file.ok is False for file in checked.values()):
        for name in _unlike_manifest(snapshot):
            checked[name] = CheckedFile(name, sizes.get(name, 0), False)
    files = tuple(checked[name] for name in sorted(checked))
    return Check(snapshot, files, is_published=True)


@dataclass(frozen=True)
class _Counter:
    """Tells of pieces of one file after another."""

    progress: ProgressCallback
    before: int
    total: int

    def tell(self, done: int) -> None:
        self.progress(LoadProgress(min(self.before + done, self.total), self.total))


def _is_whole(file: Path, counter: _Counter) -> bool | None:
    """Whether the bytes are those that the blob's name stands for."""
    try:
        blob = file.resolve(strict=True)
        digest = blob.name if file.is_symlink() else ""
        if digest and not (_SHA256.fullmatch(digest) or _GIT_ID.fullmatch(digest)):
            return None
        sha256, git_id = _digests(blob, counter)
    except (OSError, RuntimeError):  # it leads nowhere, or cannot be read
        return False
    if digest:
        return digest in (sha256, git_id)
    # Windows without links: a copy, whose blob has the name of the digest
    blobs = HubFolder(file.parent.parent.parent).blobs
    return True if any((blobs / one).exists() for one in (sha256, git_id)) else None


def _digests(file: Path, counter: _Counter) -> tuple[str, str]:
    """SHA-256 of the content, and the id that git gives it."""
    sha256, git, done = hashlib.sha256(), hashlib.sha1(usedforsecurity=False), 0
    git.update(b"blob %d\0" % file.stat().st_size)
    with file.open("rb") as stream:
        while piece := stream.read(PIECE):
            sha256.update(piece)
            git.update(piece)
            done += len(piece)
            counter.tell(done)
    return sha256.hexdigest(), git.hexdigest()


def _unlike_manifest(snapshot: Path) -> Iterator[str]:
    """Of a store that was published as it is: files that its own manifest describes otherwise.

    A file whose blob has the digest of the manifest for a name has been read already.
    """
    directory = ModelDirectory.open(snapshot)
    if not is_store(directory):
        return
    for name, record in Manifest.read(directory).files.items():
        file = directory.file(name)
        if file.name != record.sha256 and hash_file(file) != record:
            yield name


def _names(snapshot: Path) -> list[str]:
    return sorted(
        (Path(place) / name).relative_to(snapshot).as_posix()
        for place, _, names in os.walk(snapshot)
        for name in names
    )


def _size(file: Path) -> int:
    with suppress(OSError, RuntimeError):
        return file.stat().st_size
    return 0
