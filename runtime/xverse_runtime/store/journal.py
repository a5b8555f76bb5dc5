"""What an interrupted conversion has finished."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from xverse_runtime.model_dir import ModelDirectory
from xverse_runtime.store.layout import StoreLayout
from xverse_runtime.store.manifest import FORMAT_VERSION, FileRecord

JOURNAL_FILE = "progress.json"


class Journal:
    """Finished files of a conversion, on disk after each one.

    It is only good for the same source, precision and format; otherwise everything starts anew.
    """

    def __init__(self, path: Path, key: dict[str, Any], records: dict[str, FileRecord]) -> None:
        self._path = path
        self._key = key
        self.records = records

    @classmethod
    def resume(cls, partial: Path, layout: StoreLayout, source: ModelDirectory) -> Journal:
        """The journal in ``partial``, or an empty one; unfinished files are removed."""
        key = _key(layout, source)
        path = partial / JOURNAL_FILE
        records: dict[str, FileRecord] = {}
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            if data["key"] == key:
                records = {name: FileRecord(**one) for name, one in data["files"].items()}
        except (OSError, ValueError, KeyError, TypeError):
            pass
        kept = {
            name: record
            for name, record in records.items()
            if (partial / name).is_file() and (partial / name).stat().st_size == record.bytes
        }
        for file in partial.iterdir():
            if file.is_file() and file.name not in (*kept, JOURNAL_FILE, ".lock"):
                file.unlink()
        return cls(path, key, kept)

    def add(self, name: str, record: FileRecord) -> None:
        self.records[name] = record
        data = {"key": self._key, "files": {key: asdict(one) for key, one in self.records.items()}}
        temporary = self._path.with_name(JOURNAL_FILE + ".tmp")
        with temporary.open("w", encoding="utf-8") as file:
            json.dump(data, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self._path)


def _key(layout: StoreLayout, source: ModelDirectory) -> dict[str, Any]:
    """What must be the same for finished files to be of use."""
    patterns = ("*.safetensors", "*.bin", "*.index.json", "config.json")
    files = sorted({name for pattern in patterns for name in source.names(pattern)})
    stats = {name: source.file(name).stat() for name in files}
    return {
        "format_version": FORMAT_VERSION,
        "precision": asdict(layout.precision),
        "source": {name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()},
    }
