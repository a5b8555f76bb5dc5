"""Rendered replies: live on a terminal, from a thread of its own; row by row anywhere else."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING

from xverse_cli.streams import Streams, naming_stdout

if TYPE_CHECKING:
    from xverse_cli.render.markdown.theme import Theme

FRAME_S = 1 / 30
RESIZE_S = 0.1  # how soon a change of size is followed while no text comes
MOST_WAITING = 2**22  # characters; more text than any model writes in one reply
# Terminals that are known to show hyperlinks, by what they set.
_LINKING = ("KITTY_WINDOW_ID", "WT_SESSION", "KONSOLE_VERSION", "WEZTERM_PANE", "GHOSTTY_BIN_DIR")
_LINKING_PROGRAMS = ("iTerm.app", "WezTerm", "vscode", "ghostty", "Hyper", "rio")


class LiveSink:
    """A reply on a terminal, rendered as it comes.

    Text is taken in at once, whatever the terminal is doing. A thread renders what has come and
    writes it, 30 times a second at most. An error of writing comes out of the next call.
    """

    def __init__(self, streams: Streams, environ: Mapping[str, str] | None) -> None:
        self._streams = streams
        self._environ = environ
        self._state = threading.Condition()
        self._waiting: list[str] = []
        self._waiting_length = 0
        self._closing = False
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None
        # The first token should not wait for imports.
        threading.Thread(target=_warm_up, daemon=True).start()

    def write(self, text: str) -> None:
        if not text:
            return
        self._start()
        with self._state:
            self._state.wait_for(lambda: self._error or self._waiting_length < MOST_WAITING)
            self._raise_error()
            self._waiting.append(text)
            self._waiting_length += len(text)
            self._state.notify_all()

    def close(self) -> None:
        self._start()
        with self._state:
            self._closing = True
            self._state.notify_all()
        assert self._thread is not None
        self._thread.join()
        self._raise_error()

    def _start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="reply", daemon=True)
            self._thread.start()

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            self._render()
        except BaseException as error:  # belongs to whoever writes
            with self._state:
                self._error = error
                self._state.notify_all()

    def _render(self) -> None:
        from xverse_cli.render.markdown.display import Display

        stdout = self._streams.stdout
        display = Display(theme_for(self._streams, self._environ), lambda: screen_size(stdout))
        adapt = _adapter(stdout.encoding)
        while True:
            with self._state:
                # Without text too, the tail follows the size of the screen.
                self._state.wait_for(lambda: self._waiting or self._closing, timeout=RESIZE_S)
                text, closing = "".join(self._waiting), self._closing
                self._waiting.clear()
                self._waiting_length = 0
                self._state.notify_all()
            began = time.monotonic()
            written = display.frame(adapt(text))
            if closing:
                written += display.close() or "\n"
            if written:
                with naming_stdout():
                    stdout.write(written)
                    stdout.flush()
            if closing:
                return
            with self._state:
                left = FRAME_S - (time.monotonic() - began)
                self._state.wait_for(lambda: self._closing, timeout=max(0.0, left))


class RowsSink:
    """A rendered reply for a pipe, a file or a terminal that can do nothing: finished rows only."""

    def __init__(self, streams: Streams, environ: Mapping[str, str] | None) -> None:
        from xverse_cli.render.markdown.stream import MarkdownStream

        self._streams = streams
        self._adapt = _adapter(streams.stdout.encoding)
        theme = theme_for(streams, environ)
        self._stream = MarkdownStream(theme, *screen_size(streams.stdout))
        self._written = False

    def write(self, text: str) -> None:
        from xverse_cli.render.markdown.paint import plain_rows

        self._put(plain_rows(self._stream.feed(self._adapt(text))))

    def close(self) -> None:
        from xverse_cli.render.markdown.paint import plain_rows

        self._put(plain_rows(self._stream.finish()))
        if not self._written:
            self._put("\n")

    def _put(self, rows: str) -> None:
        if rows:
            self._written = True
            with naming_stdout():
                self._streams.stdout.write(rows)
                self._streams.stdout.flush()


def screen_size(stdout: object) -> tuple[int, int]:
    """Columns and rows of the terminal; of an imagined one where there is none."""
    with suppress(OSError, ValueError, AttributeError):
        size = os.get_terminal_size(stdout.fileno())  # type: ignore[attr-defined]
        if size.columns > 0 and size.lines > 0:
            return size.columns, size.lines
    size = shutil.get_terminal_size((80, 24))
    return size.columns, size.lines


def theme_for(streams: Streams, environ: Mapping[str, str] | None) -> Theme:
    """What stdout can show: colours by Rich's rules, hyperlinks where they are known to work."""
    from rich.console import Console

    from xverse_cli.render.markdown.theme import theme_of

    console = Console(file=streams.stdout, _environ=environ, markup=False, emoji=False)
    known = environ or {}
    return theme_of(
        console,
        links=streams.stdout_is_terminal and shows_links(known),
        light=known.get("COLORFGBG", "").rpartition(";")[2] in ("7", "15"),
    )


def shows_links(environ: Mapping[str, str]) -> bool:
    """Whether the terminal is one of those that show hyperlinks (OSC 8)."""
    vte = environ.get("VTE_VERSION", "")
    return (
        any(environ.get(name) for name in _LINKING)
        or environ.get("TERM_PROGRAM") in _LINKING_PROGRAMS
        or (vte.isdigit() and int(vte) >= 5000)
        or environ.get("TERM", "").startswith(("foot", "alacritty", "xterm-kitty", "xterm-ghostty"))
    )


def rewraps(environ: Mapping[str, str]) -> bool:
    """Whether the terminal is one of those that wrap rows again when it becomes narrower: all that
    show links, and tmux."""
    return bool(environ.get("TMUX")) or shows_links(environ)


def _adapter(encoding: str) -> Callable[[str], str]:
    """Replaces what ``encoding`` lacks before it is laid out, so that widths are right."""
    if encoding.lower().replace("-", "").startswith("utf"):
        return lambda text: text
    return lambda text: text.encode(encoding, "replace").decode(encoding)


def _warm_up() -> None:
    import rich.console
    import rich.style

    from xverse_cli.render.markdown import display
    from xverse_cli.render.markdown.parser import parser

    del rich, display
    parser()
