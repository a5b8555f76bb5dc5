"""The history of what was typed, kept in the state directory for its owner alone."""

from __future__ import annotations

import os
from pathlib import Path

from prompt_toolkit.history import FileHistory, History, InMemoryHistory

from xverse_cli.messages import text
from xverse_cli.settings import state_dir
from xverse_cli.streams import Streams


class PrivateHistory(FileHistory):
    """A history file; when it cannot be written, the conversation goes on without."""

    def __init__(self, path: Path, streams: Streams) -> None:
        super().__init__(str(path))
        self._path = path
        self._streams = streams
        self._failed = False

    def store_string(self, string: str) -> None:
        try:
            super().store_string(string)
        except OSError as error:
            if not self._failed:
                _complain(self._path, error, self._streams)
            self._failed = True


def open_history(streams: Streams) -> History:
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
    return PrivateHistory(path, streams)


def _complain(path: Path, error: OSError, streams: Streams) -> None:
    streams.warn(text("chat.no_history", path=path, detail=error.strerror or str(error)))
