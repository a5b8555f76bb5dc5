"""Renders texts for tests, with looks that can be told apart."""

from __future__ import annotations

from collections.abc import Iterable

from tests.render.terminal import Terminal
from xverse_cli.render.markdown.display import Display
from xverse_cli.render.markdown.stream import MarkdownStream
from xverse_cli.render.markdown.theme import Theme
from xverse_cli.render.markdown.wrap import Row, row_text

# What is drawn beside the text, each in a look of its own.
DECORATION = {"marker": "91", "quote": "92", "rule": "93", "frame": "94", "label": "95"}
TEXT = {"strong": "1", "em": "3", "s": "9", "code": "36", "link": "4", "maths": "33", "th": "1"}
THEME = Theme({**DECORATION, **TEXT}, links=True)
UNSTYLED = Theme()


def rows(text: str, columns: int = 40, *, screen_rows: int = 24, theme: Theme = THEME) -> list[Row]:
    """The rows of a whole text."""
    stream = MarkdownStream(theme, columns, screen_rows)
    return [*stream.feed(text), *stream.finish()]


def lines(
    text: str, columns: int = 40, *, screen_rows: int = 24, theme: Theme = THEME
) -> list[str]:
    """The same without looks."""
    return [row_text(row) for row in rows(text, columns, screen_rows=screen_rows, theme=theme)]


def looks(text: str, look: str) -> list[str]:
    """The parts of a text that have a look."""
    return [span.text for row in rows(text) for span in row if look in span.sgr.split(";")]


def words(text: str, columns: int = 80) -> str:
    """A text as it is rendered, without what is drawn beside it and without spaces."""
    drawn = set(DECORATION.values())
    spans = [span for row in rows(text, columns) for span in row]
    kept = [span.text for span in spans if not drawn.intersection(span.sgr.split(";"))]
    return "".join("".join(kept).split())


def terminal_after(
    pieces: Iterable[str], columns: int, screen_rows: int, theme: Theme = THEME
) -> Terminal:
    """A terminal on which a reply came in these pieces, each a frame."""
    terminal = Terminal(columns, screen_rows)
    display = Display(theme, lambda: (terminal.columns, terminal.rows))
    for piece in pieces:
        terminal.write(display.frame(piece))
    terminal.write(display.close())
    return terminal
