"""Where a streamed reply goes: a pipe gets it as it is, a terminal gets it safe and rendered.

`TokenSink` is the seam for other renderers; a sink takes text in whatever pieces it comes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from xverse_cli.render.sanitize import Sanitizer
from xverse_cli.streams import Streams


class TokenSink(Protocol):
    """Takes the text of one reply."""

    def write(self, text: str) -> None:
        """Show the next piece."""

    def close(self) -> None:
        """The reply is over: complete its last line."""


class PlainSink:
    """The reply as the model wrote it, in UTF-8, flushed piece by piece."""

    def __init__(self, streams: Streams) -> None:
        self._streams = streams
        self._last = ""

    def write(self, text: str) -> None:
        if text:
            self._streams.write_data(text)
            self._last = text[-1]

    def close(self) -> None:
        if self._last != "\n":
            self._streams.write_data("\n")


class TerminalSink:
    """The reply on a terminal, without anything that would steer it.

    Lines are left to the terminal to wrap, so that copied text has no breaks of our making.
    """

    def __init__(self, streams: Streams) -> None:
        from rich.console import Console

        self._console = Console(file=streams.stdout, markup=False, emoji=False, highlight=False)
        self._sanitizer = Sanitizer()
        self._last = ""

    def write(self, text: str) -> None:
        if shown := self._sanitizer.feed(text):
            self._print(shown)
            self._last = shown[-1]

    def close(self) -> None:
        if self._last != "\n":
            self._print("\n")

    def _print(self, text: str) -> None:
        from rich.segment import Segment, Segments

        # Segments go out untouched; Rich would expand tabs as if each piece began a line.
        segments: Any = Segments([Segment(text)])
        self._console.print(segments, end="", crop=False, soft_wrap=True)
        self._console.file.flush()


def reply_sink(
    streams: Streams,
    environ: Mapping[str, str] | None = None,
    markdown: bool | None = None,
) -> TokenSink:
    """The sink that suits stdout.

    Args:
        environ: what terminal and user have set there; ``None`` leaves that to Rich.
        markdown: render, or write the text as it is; ``None`` renders where a terminal can be
            written to again.
    """
    live = streams.stdout_is_terminal and _can_move(streams, environ)
    if markdown is None:
        markdown = live
    if not markdown:
        return TerminalSink(streams) if streams.stdout_is_terminal else PlainSink(streams)
    from xverse_cli.render.live import LiveSink, RowsSink

    return LiveSink(streams, environ) if live else RowsSink(streams, environ)


def _can_move(streams: Streams, environ: Mapping[str, str] | None) -> bool:
    """Whether the terminal understands escape sequences."""
    from rich.console import Console

    console = Console(file=streams.stdout, _environ=environ)
    return not console.is_dumb_terminal and not console.legacy_windows
