"""A table as rows: columns share the width by what they hold; where none is left, a list."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from xverse_cli.render.markdown.cells import pieces, width_of
from xverse_cli.render.markdown.inline import NEWLINE
from xverse_cli.render.markdown.theme import Theme
from xverse_cli.render.markdown.wrap import Row, Span, row_text, wrap

_GAP = 3  # columns between two cells: a space, a bar, a space
_NARROWEST = 6
_LONGEST = 14  # columns for which a word is not broken
_LEFT, _RIGHT, _CENTER = "left", "right", "center"


@dataclass(frozen=True)
class Table:
    """Cells as spans; every row has as many as the header."""

    header: Sequence[list[Span]]
    rows: Sequence[Sequence[list[Span]]]
    aligned: Sequence[str]


def table_rows(table: Table, theme: Theme, width: int) -> list[Row]:
    """Draw ``table`` in at most ``width`` columns."""
    lines = [table.header, *table.rows]
    wanted = [max(1, *(_natural(line[i]) for line in lines)) for i in range(len(table.header))]
    longest = [max(1, *(_longest(line[i]) for line in lines)) for i in range(len(table.header))]
    room = width - _GAP * (len(wanted) - 1)
    widths = _shares(wanted, longest, room)
    if widths is None:
        return _as_list(table, theme, width)
    bar = Span(f" {theme.signs.bar} ", theme.look("frame"))
    rule = f"{theme.signs.line}{theme.signs.crossings}{theme.signs.line}"
    drawn: list[Row] = _line(table.header, widths, table.aligned, bar)
    drawn.append((Span(rule.join(theme.signs.line * one for one in widths), theme.look("frame")),))
    several = False
    for row in table.rows:
        lines_of_row = _line(row, widths, table.aligned, bar)
        # Rows of several lines run into each other without a line between them.
        if several or (len(lines_of_row) > 1 and row is not table.rows[0]):
            drawn.append(_blank(widths, bar))
        several = len(lines_of_row) > 1
        drawn += lines_of_row
    return drawn


def _natural(cell: list[Span]) -> int:
    lines = "".join(span.text for span in cell).split(NEWLINE)
    return max(sum(piece.width for piece in pieces(line)) for line in lines)


def _longest(cell: list[Span]) -> int:
    """The longest piece that should not be broken."""
    return max((piece.width for span in cell for piece in pieces(span.text)), default=0)


def _shares(wanted: list[int], longest: list[int], room: int) -> list[int] | None:
    """Widths that fit into ``room``; ``None`` when columns would be too narrow to read.

    Narrow columns get what they want, wide ones the same share of the rest.
    """
    if sum(wanted) <= room:
        return wanted
    least = [
        min(want, max(_NARROWEST, min(word, _LONGEST)))
        for want, word in zip(wanted, longest, strict=True)
    ]
    if sum(least) > room:
        return None

    def at(level: int) -> list[int]:
        return [min(want, max(low, level)) for want, low in zip(wanted, least, strict=True)]

    level = max(one for one in range(room + 1) if sum(at(one)) <= room)
    widths = at(level)
    for index, want in enumerate(wanted):
        if widths[index] == level < want and sum(widths) < room:
            widths[index] += 1
    return widths


def _line(
    cells: Sequence[list[Span]], widths: list[int], aligned: Sequence[str], bar: Span
) -> list[Row]:
    columns = [wrap(cell, width) for cell, width in zip(cells, widths, strict=True)]
    rows: list[Row] = []
    for index in range(max(1, *(len(column) for column in columns))):
        spans: list[Span] = []
        for number, column in enumerate(columns):
            if number:
                spans.append(bar)
            cell = column[index] if index < len(column) else ()
            spans += _filled(cell, widths[number], aligned[number], number == len(columns) - 1)
        rows.append(tuple(spans))
    return rows


def _filled(cell: Row, width: int, side: str, last: bool) -> list[Span]:
    space = max(0, width - width_of(row_text(cell)))
    left = space if side == _RIGHT else space // 2 if side == _CENTER else 0
    right = 0 if last else space - left
    filled = [Span(" " * left)] if left else []
    filled += cell
    return [*filled, Span(" " * right)] if right else filled


def _blank(widths: list[int], bar: Span) -> Row:
    spans: list[Span] = []
    for number, width in enumerate(widths):
        if number:
            spans.append(bar)
        if number < len(widths) - 1:
            spans.append(Span(" " * width))
    return tuple(spans)


def _as_list(table: Table, theme: Theme, width: int) -> list[Row]:
    """Every row as lines of ``column: cell``, with a line between rows."""
    rule: Row = (Span(theme.signs.line * min(width, 20), theme.look("frame")),)
    header = [_in_one_line(name) for name in table.header]
    drawn: list[Row] = []
    for number, row in enumerate(table.rows):
        if number:
            drawn.append(rule)
        for name, cell in zip(header, row, strict=True):
            title = [*name, Span(": ", theme.look("th"))] if name else []
            drawn += wrap([*title, *cell], width)
    return drawn or wrap([span for name in header for span in (*name, Span(" "))], width)


def _in_one_line(cell: list[Span]) -> list[Span]:
    return [span._replace(text=span.text.replace(NEWLINE, " ")) for span in cell]
