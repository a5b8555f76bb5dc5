"""Facts and remarks on stdout that keep within the screen: no word is cut at its edge."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from xverse_cli.render.columns import padded, widest, wrapped
from xverse_cli.render.sanitize import sanitize

GAP = 2  # columns between the name of a fact and the fact
NARROWEST = 20  # columns for a fact, also where the screen has fewer


def fact_lines(rows: Iterable[tuple[str, str]], width: int | None) -> Iterator[str]:
    """A line for each row; on a screen that is too narrow its value goes on below itself.

    Args:
        rows: names and values.
        width: columns of the screen; ``None`` where there is none.
    """
    cells = [(sanitize(name), sanitize(value)) for name, value in rows]
    margin = widest(name for name, _ in cells) + GAP
    for name, value in cells:
        first, *others = remark_lines(value, width and width - margin)
        yield padded(name, margin) + first
        yield from (" " * margin + line for line in others)


def remark_lines(remark: str, width: int | None) -> list[str]:
    """``remark`` in lines of ``width`` columns, all as far in as the first; in one line where there
    is no screen."""
    words = remark.lstrip(" ")
    margin = " " * (len(remark) - len(words))
    if not width or not words:
        return [remark]
    room = max(width - len(margin), NARROWEST)
    return [margin + line for line in wrapped(words, room, whole=True)]
