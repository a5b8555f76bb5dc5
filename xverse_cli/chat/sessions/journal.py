"""One session's file: lines of JSON that are only ever appended, on disk when that returns."""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from xverse_cli.json_output import to_json
from xverse_runtime.durable import sync_directory
from xverse_runtime.errors import UsageError

# Windows keeps other processes from reading what is locked: a byte behind the end of any session.
_LOCKED_BYTE = 2**31 - 2


class Journal:
    """Appends records to a file that no other process appends to meanwhile.

    The file is made by the first record. A record that cannot be written stays here and goes
    first the next time.

    Args:
        path: the file; its folder is made for the owner alone.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None
        self._waiting: list[bytes] = []

    @property
    def waiting(self) -> int:
        """How many records could not be written yet."""
        return len(self._waiting)

    @property
    def gone(self) -> bool:
        """Whether somebody has deleted the file that was written to so far."""
        return self._descriptor is not None and os.fstat(self._descriptor).st_nlink == 0

    def open(self) -> None:
        """Open the file before there is a record, so that no other process can.

        Raises:
            UsageError: ``session.in_use``.
            OSError: the file cannot be made or written.
        """
        if self._descriptor is not None:
            return
        private_folder(self.path.parent)
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0)
        descriptor = os.open(self.path, flags, 0o600)
        try:
            if not _lock_patiently(descriptor):
                raise UsageError("session.in_use", session=self.path.stem)
            _make_private(descriptor)
            sync_directory(self.path.parent)
        except BaseException:
            close_locked(descriptor)
            raise
        self._descriptor = descriptor

    def append(self, *records: Mapping[str, object]) -> None:
        """Write ``records``, after those that wait.

        Raises:
            OSError: they could not be written, and wait.
            UsageError: ``session.in_use``.
        """
        self._waiting += [to_json(record).encode() + b"\n" for record in records]
        self.open()
        assert self._descriptor is not None
        before = os.fstat(self._descriptor).st_size
        data = b"".join(self._waiting)
        if before and not self._ends_a_line(before):
            data = b"\n" + data  # the last writer was cut short: do not go on in its line
        try:
            _write_all(self._descriptor, data)
            os.fsync(self._descriptor)
        except OSError:
            with suppress(OSError):  # half a record would only be taken for damage
                os.ftruncate(self._descriptor, before)
            raise
        self._waiting.clear()

    def close(self) -> None:
        if self._descriptor is not None:
            close_locked(self._descriptor)
            self._descriptor = None

    def _ends_a_line(self, size: int) -> bool:
        assert self._descriptor is not None
        os.lseek(self._descriptor, size - 1, os.SEEK_SET)
        return os.read(self._descriptor, 1) == b"\n"


def private_folder(folder: Path) -> None:
    """Make ``folder``, for its owner alone."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if os.name != "nt":
        folder.chmod(0o700)


def lock(descriptor: int) -> bool:
    """Keep other processes out for as long as the file is open; whether none is in.

    The system takes the lock back when a process ends, however it ends.
    """
    fcntl, msvcrt = _module("fcntl"), _module("msvcrt")
    try:
        if fcntl is not None:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        elif msvcrt is not None:
            os.lseek(descriptor, _LOCKED_BYTE, os.SEEK_SET)
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
    except (BlockingIOError, PermissionError):  # the latter is Windows'
        return False
    except OSError:  # a file system without locks is no reason not to save
        return True
    return True


def close_locked(descriptor: int) -> None:
    """Close a file on which `lock` was tried."""
    msvcrt = _module("msvcrt")
    if msvcrt is not None:  # Windows takes its time to take back the locks of closed files
        with suppress(OSError):
            os.lseek(descriptor, _LOCKED_BYTE, os.SEEK_SET)
            msvcrt.locking(descriptor, msvcrt.LK_UNLCK, 1)
    os.close(descriptor)


def _lock_patiently(descriptor: int) -> bool:
    """Like `lock`; somebody who only looks whether the session is open holds it for a moment."""
    for _ in range(10):
        if lock(descriptor):
            return True
        time.sleep(0.01)
    return False


def _module(name: str) -> Any:
    """A module of the standard library that only some systems have, or ``None``."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def _make_private(descriptor: int) -> None:
    if os.name != "nt":
        os.fchmod(descriptor, 0o600)


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
