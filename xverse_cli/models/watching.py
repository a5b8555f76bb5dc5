"""Passes on what a download tells to the display of the moment."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from xverse_cli.host import Host
from xverse_cli.messages import text
from xverse_cli.models.download.transfer import Note, Status
from xverse_cli.render.download import DownloadDisplay, Rest


class HostWatcher:
    """A `Watcher` that shows bars within `displaying`, and remarks always."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._display: DownloadDisplay | None = None

    @contextmanager
    def displaying(self, rest: Rest | None = None) -> Iterator[None]:
        """Show bars meanwhile; ``rest``: what belongs to the download beside what is told."""
        with DownloadDisplay(self._host.streams, rest=rest) as self._display:
            yield
        self._display = None

    def show(self, statuses: list[Status]) -> None:
        if self._display is not None:
            self._display.show(statuses)

    def note(self, note: Note) -> None:
        if note.key == "pull.retrying" and self._display is not None and self._display.has_bars:
            return  # the time of the next try stands below the bars
        line = text(note.key, **note.facts)
        if self._display is not None:
            self._display.say(line)
        else:
            self._host.streams.warn(line)
