"""A reply on a terminal: text in, what is to be written out; also through changes of its size."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy

from xverse_cli.render.markdown.paint import Painter
from xverse_cli.render.markdown.stream import MarkdownStream
from xverse_cli.render.markdown.theme import Theme
from xverse_cli.render.markdown.wrap import Row, row_width


class Display:
    """Streams one reply to a terminal whose cursor stands at the beginning of a line.

    Args:
        size: tells columns and rows of the terminal.
    """

    def __init__(self, theme: Theme, size: Callable[[], tuple[int, int]]) -> None:
        self._ask_size = size
        self._size = size()
        self._stream = MarkdownStream(theme, *self._size)
        self._painter = Painter()

    def frame(self, text: str) -> str:
        """Take ``text`` in and bring the screen up to date."""
        return self._in_one_size(lambda: self._paint(self._stream.feed(text)))

    def close(self) -> str:
        """The reply is over: everything final, the cursor below it."""
        return self._in_one_size(self._end)

    def _end(self) -> str:
        return self._painter.frame(self._stream.finish(), []) + self._painter.close()

    def _in_one_size(self, step: Callable[[], str]) -> str:
        """What a step writes, done again when the size has changed while it was laid out."""
        while True:
            before = self._stream.copy(), copy(self._painter), self._size
            written = self._follow_size() + step()
            if self._ask_size() == self._size:
                return written
            self._stream, self._painter, self._size = before  # nothing of it was written

    def _paint(self, finished: list[Row]) -> str:
        most = max(1, self._size[1] - 1)
        return self._painter.frame(finished, self._stream.tail()[-most:])

    def _follow_size(self) -> str:
        """After a change of size: rows that cannot be reached any more stay as they are.

        Some terminals wrap a row again that has become too wide, others cut it, and none tells.
        Such a row is left alone, with all above it; those below are known to be one row each.
        """
        size = self._ask_size()
        if size == self._size:
            return ""
        columns, rows = size
        tail = self._painter.tail
        wide = [number for number, row in enumerate(tail, 1) if row_width(row) > columns]
        stuck = max(wide[-1] if wide else 0, len(tail) - max(1, rows - 1))
        hidden = len(self._stream.tail()) - len(tail)
        written = ""
        if stuck > 0:
            finished = self._stream.freeze(stuck + hidden)
            written = self._paint(finished)
        self._size = size
        return written + self._paint(self._stream.resize(columns, rows))
