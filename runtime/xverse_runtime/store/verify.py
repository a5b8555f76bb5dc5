"""Whether every byte of a store is what was written."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from xverse_runtime.config import ModelConfig
from xverse_runtime.errors import IntegrityError
from xverse_runtime.model_dir import ModelDirectory
from xverse_runtime.store.journal import JOURNAL_FILE
from xverse_runtime.store.layout import StoreLayout
from xverse_runtime.store.manifest import MANIFEST_FILE, FileRecord, Manifest
from xverse_runtime.types import LoadProgress, ProgressCallback

PIECE = 2**23


def verify_store(path: Path, progress: ProgressCallback = lambda progress: None) -> Manifest:
    """Read all files of a store and compare their SHA-256.

    Raises:
        IntegrityError: ``store.hash``, ``store.unlisted`` and what `Manifest.read` raises.
    """
    directory = ModelDirectory.open(path)
    manifest = Manifest.read(directory)
    for name in damaged_files(directory, manifest.files, progress):
        raise IntegrityError("store.hash", name=name, path=str(directory.path))
    check_names(directory, manifest)
    return manifest


def check_names(directory: ModelDirectory, manifest: Manifest) -> None:
    """Whether the files with digests are all that a model is read from.

    Raises:
        IntegrityError: ``store.unlisted`` and what `StoreLayout.check_listed` raises.
    """
    layout = StoreLayout(ModelConfig.from_dir(directory), manifest.precision)
    layout.check_listed(manifest, directory)
    unlisted = sorted(_entries(directory.path) - manifest.files.keys())
    if unlisted:
        raise IntegrityError("store.unlisted", names=unlisted, path=str(directory.path))


def damaged_files(
    directory: ModelDirectory,
    files: Mapping[str, FileRecord],
    progress: ProgressCallback = lambda progress: None,
) -> Iterator[str]:
    """Names of the files that are not what was written."""
    done, total = 0, sum(record.bytes for record in files.values())
    for name, record in files.items():
        if hash_file(directory.file(name)) != record:
            yield name
        done += record.bytes
        progress(LoadProgress(done, total))


def _entries(path: Path) -> set[str]:
    """What lies in a store, without what file managers hide there and what a conversion that was
    killed in its last moment left."""
    names = {entry.name for entry in path.iterdir() if not entry.name.startswith(".")}
    return names - {MANIFEST_FILE, JOURNAL_FILE}


def hash_file(path: Path) -> FileRecord:
    """Size and SHA-256 of a file as it is on disk."""
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            digest.update(piece)
            size += len(piece)
    return FileRecord(size, digest.hexdigest())
