"""Rows as an SVG that looks the same with any fonts: every wide character has its own place."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape

from xverse_cli.render.markdown.cells import pieces
from xverse_cli.render.markdown.wrap import Row, Span

_CELL, _LINE, _SIZE, _MARGIN = 8.4, 19, 14, 14
_BACKGROUND, _TEXT = "#1e2127", "#d7dae0"
_COLOURS = ("#3f4451", "#e06c75", "#98c379", "#e5c07b", "#61afef", "#c678dd", "#56b6c2", "#d7dae0")
_BRIGHT = ("#7f848e", "#ef8993", "#b1d796", "#f0d197", "#7fc2fa", "#dd97f0", "#76cfda", "#ffffff")
_FONTS = "'DejaVu Sans Mono','Menlo','Consolas','Noto Sans Mono CJK SC','PingFang SC',monospace"


def svg(rows: Sequence[Row], columns: int) -> str:
    """A terminal of ``columns`` with these rows on it."""
    width = 2 * _MARGIN + columns * _CELL
    height = 2 * _MARGIN + len(rows) * _LINE
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height}"'
        f' width="{width:.0f}" height="{height}" font-family="{_FONTS}" font-size="{_SIZE}">',
        f'<rect width="100%" height="100%" rx="8" fill="{_BACKGROUND}"/>',
    ]
    for number, row in enumerate(rows):
        parts += _row(row, _MARGIN + (number + 0.75) * _LINE)
    return "\n".join([*parts, "</svg>", ""])


def _row(row: Row, y: float) -> Iterator[str]:
    column = 0
    for span in row:
        begin, style = column, _style(span)
        for piece in pieces(span.text):
            if piece.text.strip() and piece.width:
                x = _MARGIN + column * _CELL
                length = f' textLength="{piece.width * _CELL:.1f}"' if len(piece.text) > 1 else ""
                text = escape(piece.text)
                yield f'<text x="{x:.1f}" y="{y:.1f}"{length}{style}>{text}</text>'
            column += piece.width
        yield from _lines(span, begin, column, y)


def _style(span: Span) -> str:
    numbers = span.sgr.split(";") if span.sgr else []
    fill, style = _colour(numbers), ""
    if "1" in numbers:
        style += ' font-weight="bold"'
    if "3" in numbers:
        style += ' font-style="italic"'
    if "2" in numbers:
        style += ' opacity="0.6"'
    return f' fill="{fill}"{style}'


def _colour(numbers: Sequence[str]) -> str:
    fill = _TEXT
    for number in map(int, filter(None, numbers)):
        if 30 <= number <= 37:
            fill = _COLOURS[number - 30]
        elif 90 <= number <= 97:
            fill = _BRIGHT[number - 90]
    return fill


def _lines(span: Span, begin: int, end: int, y: float) -> Iterator[str]:
    numbers = span.sgr.split(";")
    for number, offset in (("4", 3), ("9", -4)):
        if number in numbers:
            x, width = _MARGIN + begin * _CELL, (end - begin) * _CELL
            yield (
                f'<rect x="{x:.1f}" y="{y + offset:.1f}" width="{width:.1f}" height="1"'
                f' fill="{_colour(numbers)}"/>'
            )
