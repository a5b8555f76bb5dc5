"""What an interrupted conversion has finished."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from xverse_runtime.checkpoint import weight_files
from xverse_runtime.durable import write_durably
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

    @property
    def done_bytes(self) -> int:
        """The size of the finished files together."""
        return sum(record.bytes for record in self.records.values())

    @classmethod
    def resume(cls, partial: Path, layout: StoreLayout, source: Mapping[str, Any]) -> Journal:
        """The journal in ``partial``, or a new one; unfinished files are removed.

        Args:
            partial: the folder of the conversion.
            layout: of the store.
            source: what tells the source from others, as JSON: `weight_stamps`, for example.
        """
        key = _key(layout, source)
        return cls.begin(partial, key, finished_files(partial, layout, source))

    @classmethod
    def begin(
        cls,
        partial: Path,
        key: dict[str, Any] | None = None,
        records: dict[str, FileRecord] | None = None,
    ) -> Journal:
        """A journal of the files in ``records``; all others are removed.

        It is written at once: from now on the folder is known to be a conversion's.
        """
        journal = cls(partial / JOURNAL_FILE, key or {}, records or {})
        for file in partial.iterdir():
            if file.is_file() and file.name not in (*journal.records, JOURNAL_FILE):
                file.unlink()
        journal._save()
        return journal

    def add(self, name: str, record: FileRecord) -> None:
        self.records[name] = record
        self._save()

    def discard(self, name: str) -> None:
        """Forget a finished file that turned out damaged, so that a restart writes it anew."""
        del self.records[name]
        self._save()
        self._path.with_name(name).unlink(missing_ok=True)

    def remove(self) -> None:
        """The store is complete, and this is no part of it."""
        self._path.unlink(missing_ok=True)

    def _save(self) -> None:
        data = {"key": self._key, "files": {key: asdict(one) for key, one in self.records.items()}}
        write_durably(self._path, json.dumps(data).encode())


def finished_files(
    partial: Path, layout: StoreLayout, source: Mapping[str, Any]
) -> dict[str, FileRecord]:
    """What a conversion of this very source has finished in ``partial``; see `Journal.resume`."""
    records: dict[str, FileRecord] = {}
    try:
        data = json.loads((partial / JOURNAL_FILE).read_text(encoding="utf-8"))
        if data["key"] == _key(layout, source):
            records = {name: FileRecord(**one) for name, one in data["files"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass  # not one of ours, or half of one: nothing in it is believed
    planned = {file.name for file in layout.files()}
    return {
        name: record
        for name, record in records.items()
        if name in planned
        and (partial / name).is_file()
        and (partial / name).stat().st_size == record.bytes
    }


def reopen(
    store: Path, layout: StoreLayout, source: Mapping[str, Any], records: dict[str, FileRecord]
) -> None:
    """Write into a finished store the journal of a conversion that has finished ``records``."""
    Journal(store / JOURNAL_FILE, _key(layout, source), records)._save()


def _key(layout: StoreLayout, source: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "format_version": FORMAT_VERSION,
        "precision": asdict(layout.precision),
        "source": source,
    }


def weight_stamps(source: ModelDirectory) -> dict[str, Any]:
    """Size and time of change of what a conversion reads: other weights have others."""
    stats = {name: source.file(name).stat() for name in ("config.json", *weight_files(source))}
    return {name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()}
