"""A terminal to look at what the renderer writes: pyte, with all that was scrolled away."""

from __future__ import annotations

from collections import deque
from unicodedata import normalize

import pyte
from pyte.screens import Char
from wcwidth import wcwidth


class Terminal:
    """A screen with its scrollback.

    Changes of size follow what terminals do: rows that are too wide are wrapped again
    (``reflows``) or stay as they are with a part out of sight; what does not fit at the top goes
    to the scrollback.
    """

    def __init__(self, columns: int, rows: int, *, reflows: bool = True) -> None:
        self.reflows = reflows
        self.columns, self.rows = columns, rows
        self.screen = _Screen(columns, rows)
        self._stream = pyte.Stream(self.screen)
        self.written = 0

    def write(self, text: str) -> None:
        self.written += len(text.encode())
        # pyte wraps before a mark in the last column, and drops what follows other zero widths.
        text = "".join(one for one in normalize("NFC", text) if one < "\u0300" or wcwidth(one))
        self._stream.feed(text.replace("\n", "\r\n").replace("\r\r\n", "\r\n"))

    @property
    def lines(self) -> list[str]:
        """Everything there is, from the first line on, without empty lines at the end."""
        lines = [_shown(line) for line in self.screen.gone] + [
            _shown(self.screen.buffer[y]) for y in range(self.screen.lines)
        ]
        while lines and not lines[-1]:
            lines.pop()
        return lines

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    def resize(self, columns: int, rows: int) -> None:
        """Give the screen another size, as a terminal does."""
        screen = self.screen
        used = [dict(screen.buffer[y]) for y in range(screen.lines)]
        at = (screen.cursor.y, screen.cursor.x)
        if self.reflows and columns < screen.columns:
            used, at = _reflowed(used, at, columns)
        last = max([at[0], *(y for y, line in enumerate(used) if _shown(line))])
        used = used[: last + 1]
        away = max(0, len(used) - rows)
        screen.gone.extend(used[:away])
        screen.resize(rows, max(columns, screen.columns) if not self.reflows else columns)
        screen.reset_buffer(used[away:])
        screen.wrap_at(columns, rows)
        screen.cursor.y = at[0] - away
        screen.cursor.x = min(at[1], columns - 1)
        self.columns, self.rows = columns, rows


class _Screen(pyte.Screen):
    """Keeps the lines that scroll away; with them whatever the size becomes."""

    def __init__(self, columns: int, rows: int) -> None:
        self.gone: deque[dict[int, Char]] = deque()
        super().__init__(columns, rows)

    def index(self) -> None:
        if self.cursor.y == self.lines - 1:
            self.gone.append(dict(self.buffer[0]))
        super().index()

    def reset_buffer(self, lines: list[dict[int, Char]]) -> None:
        self.buffer.clear()
        for y, line in enumerate(lines):
            self.buffer[y].update(line)

    def wrap_at(self, columns: int, rows: int) -> None:
        self.columns, self.lines = columns, rows
        self.dirty.update(range(rows))


def _shown(line: dict[int, Char]) -> str:
    cells = [line[x].data if x in line else " " for x in range(max(line, default=-1) + 1)]
    return "".join(cells).rstrip()


def _reflowed(
    lines: list[dict[int, Char]], at: tuple[int, int], columns: int
) -> tuple[list[dict[int, Char]], tuple[int, int]]:
    """Lines wrapped again at ``columns``, and where the cursor gets."""
    wrapped: list[dict[int, Char]] = []
    cursor = (0, 0)
    for y, line in enumerate(lines):
        length = len(_shown(line)) and max(
            x + 1 for x, cell in line.items() if cell.data.strip() or not cell.data
        )
        rows: list[dict[int, Char]] = [{}]
        for x in range(length):
            cell = line.get(x)
            wide = x + 1 in line and line[x + 1].data == ""
            if len(rows[-1]) + (2 if wide else 1) > columns and not (cell and cell.data == ""):
                rows.append({})
            rows[-1][len(rows[-1])] = cell or Char(" ")
        if y == at[0]:
            cursor = (len(wrapped) + len(rows) - 1, len(rows[-1]) if at[1] >= length else at[1])
        wrapped += rows
    return wrapped, cursor
