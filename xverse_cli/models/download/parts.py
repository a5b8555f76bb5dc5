"""Which bytes of a file have arrived, kept beside it so that nothing else needs to be believed.

The table is one small file: a page with what is being fetched, as JSON, then for each part two
64-bit counters, ``written`` and ``synced``, both bytes from the part's beginning. ``written`` is
updated after every piece; the system keeps it, like the data, when the process is killed. After a
power cut, or where the system cannot be asked whether there was one, only ``synced`` is believed.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Lock
from typing import Any

from xverse_runtime.durable import write_durably

PART_BYTES = 2**25
HEADER_BYTES = 4096
_COUNTERS = struct.Struct("<qq")
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_VERSION = 1


@dataclass(frozen=True)
class Pinned:
    """What a half-fetched file is half of. ``digest`` decides, which is the ETag that the Hub gives
    a file; the rest is for people."""

    digest: str
    size: int
    name: str
    repo: str
    commit: str
    source: str


@dataclass(frozen=True)
class Part:
    """Bytes ``start`` to ``end`` (exclusive) of a file."""

    index: int
    start: int
    end: int


class PartTable:
    """The counters of one file; safe to use from several threads."""

    def __init__(self, path: Path, pinned: Pinned, counters: list[tuple[int, int]]) -> None:
        self.pinned = pinned
        self.parts = list(parts_of(pinned.size))
        self._lock = Lock()
        self._written = [written for written, _ in counters]
        self._synced = [synced for _, synced in counters]
        write_durably(path, _header(pinned) + b"".join(_COUNTERS.pack(*one) for one in counters))
        self._file = os.open(path, os.O_RDWR | getattr(os, "O_BINARY", 0))

    @classmethod
    def open(cls, path: Path, pinned: Pinned, data_bytes: int) -> PartTable:
        """The table at ``path`` if it is of the same content, else a new one.

        Args:
            data_bytes: how large the half-fetched file is; ``0`` where there is none.
        """
        parts = list(parts_of(pinned.size))
        counters = [(0, 0)] * len(parts)
        if data_bytes == pinned.size and (found := _read(path)):
            header, kept = found
            same = (header.get("digest"), header.get("size")) == (pinned.digest, pinned.size)
            if same and len(kept) == len(parts):
                here = boot_id()
                trusted = bool(here) and header.get("boot_id") == here
                counters = [
                    _believed(one, part, trusted) for one, part in zip(kept, parts, strict=True)
                ]
        return cls(path, pinned, counters)

    def written(self, index: int) -> int:
        return self._written[index]

    @property
    def done_bytes(self) -> int:
        return sum(self._written)

    @property
    def frontier(self) -> int:
        """How many bytes from the beginning of the file on have arrived without a gap."""
        done = 0
        for part, written in zip(self.parts, self._written, strict=True):
            done += written
            if written < part.end - part.start:
                break
        return done

    def advance(self, index: int, start: int, end: int) -> None:
        """Bytes ``start`` to ``end`` of a part are there; they count where no gap is before."""
        with self._lock:
            if start <= self._written[index]:
                self._written[index] = max(end, self._written[index])
            os.lseek(self._file, HEADER_BYTES + index * _COUNTERS.size, os.SEEK_SET)
            os.write(self._file, _COUNTERS.pack(self._written[index], self._synced[index]))

    def snapshot(self) -> list[int]:
        """The counters now; with `mark_synced`, after the data has been made durable."""
        with self._lock:
            return list(self._written)

    def mark_synced(self, snapshot: list[int]) -> None:
        with self._lock:
            self._synced = snapshot
            pairs = zip(self._written, self._synced, strict=True)
            os.lseek(self._file, HEADER_BYTES, os.SEEK_SET)
            os.write(self._file, b"".join(_COUNTERS.pack(*pair) for pair in pairs))
            os.fsync(self._file)

    def close(self) -> None:
        os.close(self._file)


def parts_of(size: int) -> Iterator[Part]:
    """A file cut into pieces that are fetched in one request each."""
    for index, start in enumerate(range(0, size, PART_BYTES)):
        yield Part(index, start, min(start + PART_BYTES, size))


def read_progress(path: Path) -> tuple[Pinned, int] | None:
    """What is being fetched and how many bytes of it are there; ``None`` for no table of ours."""
    found = _read(path)
    if found is None:
        return None
    header, counters = found
    try:
        pinned = Pinned(**{key: header[key] for key in Pinned.__dataclass_fields__})
    except KeyError:
        return None
    return pinned, sum(written for written, _ in counters)


def boot_id() -> str:
    """What changes with every start of the system; empty where it does not tell."""
    try:
        return _BOOT_ID.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _believed(counters: tuple[int, int], part: Part, trusted: bool) -> tuple[int, int]:
    written, synced = counters
    length = part.end - part.start
    believed = written if trusted else synced
    if not 0 <= believed <= length or not 0 <= synced <= length:
        return 0, 0
    return believed, min(synced, believed)


def _header(pinned: Pinned) -> bytes:
    text = json.dumps({"version": _VERSION, "boot_id": boot_id(), **asdict(pinned)})
    return text.encode().ljust(HEADER_BYTES)


def _read(path: Path) -> tuple[dict[str, Any], list[tuple[int, int]]] | None:
    try:
        data = path.read_bytes()
        header = json.loads(data[:HEADER_BYTES])
        counters = [*_COUNTERS.iter_unpack(data[HEADER_BYTES:])]
    except (OSError, ValueError, struct.error):
        return None
    if not isinstance(header, dict) or header.get("version") != _VERSION:
        return None
    return header, counters
