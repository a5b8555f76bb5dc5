"""Texts by the columns they take on a terminal, where a Chinese character takes two.

For the program's own words: light enough for help, which imports nothing heavy.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator
from unicodedata import combining, east_asian_width

from xverse_cli.render.breaking import HAN, KINDS, SPACE, WORD, keeps_together, within_word


def columns(text: str) -> int:
    """How many columns ``text``, which has no line breaks, takes."""
    if text.isascii():
        return len(text)
    return sum(_columns(character) for character in text)


def padded(text: str, width: int, *, right: bool = False) -> str:
    """``text`` with spaces up to ``width`` columns; before it, to stand at the ``right``."""
    spaces = " " * (width - columns(text))
    return spaces + text if right else text + spaces


def wrapped(text: str, width: int, *, whole: bool = False) -> list[str]:
    """The lines of a paragraph, at most ``width`` columns each where its words allow it.

    Lines break at spaces and beside wide characters; punctuation stays with what it belongs to.
    With ``whole`` they do so nowhere else: for paths, addresses and commands.
    """
    if text.isascii():
        return textwrap.wrap(text, width, break_long_words=not whole, break_on_hyphens=not whole)
    lines, line, taken = [], "", 0
    for piece in _pieces(text):
        takes = columns(piece)
        if line and taken + columns(piece.rstrip()) > width:
            lines.append(line.rstrip())
            line, taken = "", 0
        if line or piece != " ":
            line, taken = line + piece, taken + takes
    return [*lines, line.rstrip()] if line.strip() else lines


def _columns(character: str) -> int:
    if combining(character):
        return 0
    return 2 if east_asian_width(character) in "WF" else 1


def _pieces(text: str) -> Iterator[str]:
    """What a line break must not cut: words, and wide characters with their punctuation."""
    piece = ""
    for character in text:
        open_bracket = "[" in piece and "]" not in piece  # [default: 8] stays whole
        if piece and not open_bracket and _may_break(piece[-1], character):
            yield piece
            piece = ""
        piece += character
    if piece:
        yield piece


def _may_break(before: str, after: str) -> bool:
    last, first = _kind(before), _kind(after)
    if SPACE in (last, first):
        return last == SPACE != first
    return not keeps_together(last, first) and not within_word(last, first)


def _kind(character: str) -> int:
    return KINDS.get(character, HAN if _columns(character) == 2 else WORD)


def widest(cells: Iterable[str]) -> int:
    """The columns that the widest of ``cells`` takes; 0 of none."""
    return max(map(columns, cells), default=0)
