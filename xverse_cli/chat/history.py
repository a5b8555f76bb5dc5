"""The history of what was typed, kept in the state directory for its owner alone.

Several chats share it: each appends under a lock, and looks at every prompt for what the others
have added.
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Callable, Iterable
from pathlib import Path

from filelock import FileLock
from prompt_toolkit.history import FileHistory, History, InMemoryHistory

from xverse_cli.messages import text
from xverse_cli.settings import state_dir
from xverse_cli.streams import Streams

_PATIENCE_S = 2.0


class PrivateHistory(FileHistory):
    """A history file; when it cannot be written, the conversation goes on without.

    Args:
        expand: makes of what stands in the prompt the text that is meant.
        writes: whether to add to the file, and not only read it.
    """

    def __init__(
        self,
        path: Path,
        streams: Streams,
        expand: Callable[[str], str] = lambda typed: typed,
        *,
        writes: bool = True,
    ) -> None:
        super().__init__(str(path))
        self._writes = writes
        self._path = path
        self._streams = streams
        self._expand = expand
        self._failed = False
        self._unwritten: list[str] = []  # newest first
        self._stamp: tuple[int, int] | None = None
        lock = path.with_name(path.name + ".lock")
        self._lock = FileLock(str(lock), timeout=_PATIENCE_S, mode=0o600)

    def append_string(self, string: str) -> None:
        super().append_string(self._expand(string))

    async def load(self) -> AsyncGenerator[str, None]:
        """The newest first; read again when the file has changed."""
        if (stamp := self._stamp_now()) != self._stamp or not self._loaded:
            self._stamp = stamp
            self._loaded_strings = [*self._unwritten, *self.load_history_strings()]
            self._loaded = True
        for string in self._loaded_strings:
            yield string

    def load_history_strings(self) -> Iterable[str]:
        try:
            return list(super().load_history_strings())
        except OSError as error:
            self._complain(error)
            return []

    def store_string(self, string: str) -> None:
        if not self._writes:
            self._unwritten.insert(0, string)
            return
        try:
            with self._lock:
                alone = self._stamp_now() == self._stamp
                super().store_string(string)
                if alone:  # nobody else has added anything: what was read is still all
                    self._stamp = self._stamp_now()
        except OSError as error:  # also the lock's patience, which is a TimeoutError
            self._unwritten.insert(0, string)
            self._complain(error)

    def _stamp_now(self) -> tuple[int, int] | None:
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_size, found.st_mtime_ns

    def _complain(self, error: OSError) -> None:
        if not self._failed:
            _complain(self._path, error, self._streams)
        self._failed = True


def open_history(
    streams: Streams, expand: Callable[[str], str] = lambda typed: typed, *, writes: bool = True
) -> History:
    """The history file, or one in memory where there can be no file."""
    path = state_dir() / "history"
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.parent.chmod(0o700)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600))
        path.chmod(0o600)
    except OSError as error:
        _complain(path, error, streams)
        return InMemoryHistory()
    return PrivateHistory(path, streams, expand, writes=writes)


def _complain(path: Path, error: OSError, streams: Streams) -> None:
    streams.warn(text("chat.no_history", path=path, detail=error.strerror or str(error)))
