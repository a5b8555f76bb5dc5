"""Whether every byte of a store is what was written."""

from __future__ import annotations

import hashlib
from pathlib import Path

from xverse_runtime.errors import IntegrityError
from xverse_runtime.model_dir import ModelDirectory
from xverse_runtime.store.manifest import FileRecord, Manifest
from xverse_runtime.types import LoadProgress, ProgressCallback

PIECE = 2**23


def verify_store(path: Path, progress: ProgressCallback = lambda progress: None) -> Manifest:
    """Read all files of a store and compare their SHA-256.

    Raises:
        IntegrityError: ``store.hash`` and what `Manifest.read` raises.
    """
    directory = ModelDirectory.open(path)
    manifest = Manifest.read(directory)
    total = sum(record.bytes for record in manifest.files.values())
    done = 0
    for name, record in manifest.files.items():
        if hash_file(directory.file(name)) != record:
            raise IntegrityError("store.hash", name=name, path=str(directory.path))
        done += record.bytes
        progress(LoadProgress(done, total))
    return manifest


def hash_file(path: Path) -> FileRecord:
    """Size and SHA-256 of a file as it is on disk."""
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            digest.update(piece)
            size += len(piece)
    return FileRecord(size, digest.hexdigest())
