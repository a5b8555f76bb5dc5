"""A file on its way: its bytes, its table of parts, and its digest, which follows behind."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from threading import Condition, Lock
from typing import Any

from xverse_cli.models.download.http import Body, TransientError
from xverse_cli.models.download.parts import Part, PartTable, Pinned
from xverse_cli.models.download.remote import Location, RemoteFile
from xverse_runtime.durable import sync_directory

READ_BYTES = 2**18
HASH_BYTES = 2**20
DATA_SUFFIX = ".part"
TABLE_SUFFIX = ".parts"


class PartialFile:
    """Fetched in parts by several threads, hashed in order by one.

    Args:
        file: what is fetched.
        target: the name it gets once it is whole, on the same file system as ``work``.
        work: where it lies until then.
        pinned: what the table of parts says about it.
    """

    def __init__(self, file: RemoteFile, target: Path, work: Path, pinned: Pinned) -> None:
        self.file = file
        self.target = target
        self._data = work / (pinned.digest + DATA_SUFFIX)
        self._table_path = work / (pinned.digest + TABLE_SUFFIX)
        self._pinned = pinned
        self.arrived = Condition()
        self.direct: Location | None = None  # where redirects led to
        self.source_index = 0
        self.hashed_bytes = 0
        self.wrong_times = 0
        self.whole_told = False
        self.finished = False
        self._descriptors = Lock()  # held while they may be closed: their numbers are used again
        self._is_open = False
        self._generation = 0  # how often it was started over
        self._open()

    def _open(self) -> None:
        size = self._data.stat().st_size if self._data.exists() else 0
        self._file = os.open(self._data, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o644)
        self.table = PartTable.open(self._table_path, self._pinned, size)
        os.ftruncate(self._file, self.file.size)
        self._is_open = True
        self.hashed_bytes = 0
        self.unclaimed = [part for part in self.table.parts if self._missing(part)]

    def _missing(self, part: Part) -> bool:
        return self.table.written(part.index) < part.end - part.start

    @property
    def done_bytes(self) -> int:
        return self.table.done_bytes

    def receive(self, part: Part, body: Body) -> None:
        """Write what ``body`` brings of ``part``, from where it had come to.

        Raises:
            TransientError: it ended early.
        """
        position, generation = body.start, self._generation
        while position < part.end:
            piece = body.read(READ_BYTES)[: part.end - position]
            if not piece:
                raise TransientError("the connection was closed early", reached=True)
            self._write(part, position, piece, generation)
            position += len(piece)

    def receive_all(self, body: Body) -> None:
        """Take a body that begins at 0: from a server that knows no ranges."""
        position, generation = 0, self._generation
        for part in self.table.parts:
            while position < part.end:
                piece = body.read(min(READ_BYTES, part.end - position))
                if not piece:
                    raise TransientError("the connection was closed early", reached=True)
                new = part.start + self.table.written(part.index)
                if position + len(piece) > new:
                    skip = max(0, new - position)
                    self._write(part, position + skip, piece[skip:], generation)
                position += len(piece)

    def _write(self, part: Part, position: int, piece: bytes, generation: int) -> None:
        view, start = memoryview(piece), position
        with self._descriptors:
            if not self._is_open or generation != self._generation:
                raise TransientError("it is not wanted any more", reached=True)
            while view:
                count = _write_at(self._file, view, position)
                view, position = view[count:], position + count
            self.table.advance(part.index, start - part.start, position - part.start)
        with self.arrived:
            self.arrived.notify_all()

    def sync(self) -> None:
        """Make what has arrived survive a power cut."""
        with self._descriptors:
            if not self._is_open:
                return
            table, snapshot = self.table, self.table.snapshot()
            copy = os.dup(self._file)  # a disk can take its time, and nobody is to wait for it
        try:
            _sync_data(copy)
        finally:
            os.close(copy)
        with self._descriptors:
            if self._is_open and self.table is table:
                table.mark_synced(snapshot)

    def hash_more(self, digest: Any) -> bool:
        """Hash the next bytes that lie there without a gap; whether there were any."""
        ready = self.table.frontier - self.hashed_bytes
        if ready <= 0:
            return False
        piece = _read_at(self._file, min(ready, HASH_BYTES), self.hashed_bytes)
        if not piece:
            raise OSError(errno.EIO, "it has become shorter", str(self._data))
        digest.update(piece)
        self.hashed_bytes += len(piece)
        return True

    def is_right(self, digest: Any) -> bool:
        return bool(digest.hexdigest() == self.file.digest)

    def publish(self) -> None:
        """Give the whole file its name, for good."""
        _sync_data(self._file)
        self.close()
        self._data.replace(self.target)
        sync_directory(self.target.parent)
        self._table_path.unlink(missing_ok=True)
        self.finished = True

    def start_over(self) -> None:
        """Forget every byte."""
        self.close()
        self._generation += 1
        self._table_path.unlink(missing_ok=True)
        self._data.unlink(missing_ok=True)
        self.direct = None
        self._open()

    def close(self) -> None:
        with self._descriptors:
            if self._is_open:
                self._is_open = False
                os.close(self._file)
                self.table.close()


def _sync_data(file: int) -> None:
    getattr(os, "fdatasync", os.fsync)(file)


if hasattr(os, "pwrite"):

    def _write_at(file: int, data: memoryview, offset: int) -> int:
        return os.pwrite(file, data, offset)

    def _read_at(file: int, count: int, offset: int) -> bytes:
        return os.pread(file, count, offset)

else:  # Windows has one position for each open file
    _position = Lock()

    def _write_at(file: int, data: memoryview, offset: int) -> int:
        with _position:
            os.lseek(file, offset, os.SEEK_SET)
            return os.write(file, data)

    def _read_at(file: int, count: int, offset: int) -> bytes:
        with _position:
            os.lseek(file, offset, os.SEEK_SET)
            return os.read(file, count)
