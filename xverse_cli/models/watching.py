"""Passes on what a download tells to the display of the moment."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from xverse_cli.host import Host
from xverse_cli.messages import text
from xverse_cli.models.download.transfer import Note, Status
from xverse_cli.render.download import DownloadDisplay


class HostWatcher:
    """A `Watcher` that shows bars within `displaying`, and remarks always."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._display: DownloadDisplay | None = None

    @contextmanager
    def displaying(self) -> Iterator[None]:
        with DownloadDisplay(self._host.streams) as self._display:
            yield
        self._display = None

    def show(self, statuses: list[Status]) -> None:
        if self._display is not None:
            self._display.show(statuses)

    def note(self, note: Note) -> None:
        line = text(note.key, **note.facts)
        if self._display is not None:
            self._display.say(line)
        else:
            self._host.streams.warn(line)
