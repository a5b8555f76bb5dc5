"""Erases the whole prompt after its terminal became narrower and has wrapped its rows again.

prompt-toolkit goes up as many rows as it has written; what the terminal made more of them stayed
there, a piece of the prompt for every change of size.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from prompt_toolkit.data_structures import Point
from prompt_toolkit.utils import get_cwidth


def erase_rewrapped(app: Any) -> None:
    """Have the application of a prompt do so."""
    renderer, output = app.renderer, app.output
    erase = renderer.erase

    def erase_all(leave_alternate_screen: bool = True) -> None:
        screen = renderer.last_rendered_screen
        if screen is not None and screen.height > 1:
            at = renderer._cursor_pos
            rows = [_texts(screen.data_buffer[y]) for y in range(at.y)]
            rows.append(_texts(screen.data_buffer[at.y], at.x))
            output.cursor_up(rows_above(rows, output.get_size().columns))
            output.cursor_backward(at.x)
            # The first row apart: tmux keeps a screen that is erased from its first character on,
            # and shows it once more in the scrollback.
            output.erase_end_of_line()
            output.cursor_down(1)
            output.erase_down()
            output.cursor_up(1)
            renderer._cursor_pos = Point(0, 0)
        erase(leave_alternate_screen)

    renderer.erase = erase_all


def _texts(row: Mapping[int, Any], end: int | None = None) -> list[str]:
    """The characters of a row, or of its part before a column."""
    if end is None:
        end = max((x + 1 for x, cell in row.items() if cell.char.strip()), default=0)
    return [row[x].char if x in row else " " for x in range(end)]


def rows_above(rows: Iterable[list[str]], columns: int) -> int:
    """How far the cursor is from the first row where each is wrapped at ``columns``.

    Args:
        rows: their characters, wide ones followed by an empty one; the last up to the cursor.
    """
    up = -1
    for row in rows:
        up, used = up + 1, 0
        for width in map(get_cwidth, filter(None, row)):
            if used + width > columns:
                up, used = up + 1, 0
            used += width
    return max(0, up)
