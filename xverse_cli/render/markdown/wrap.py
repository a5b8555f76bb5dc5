"""Wraps text that grows at its end: a row that is out never changes.

A row is let go only when the piece that no longer fits is known, so rows depend on what stands
before them and on that piece alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, TypeAlias

from xverse_cli.render.breaking import (
    CLOSER,
    MARK,
    OPENER,
    SPACE,
    WORD_CLOSER,
    WORD_OPENER,
)
from xverse_cli.render.markdown.cells import (
    Piece,
    cut_to_width,
    may_break,
    pieces,
    upper_width,
)


class Span(NamedTuple):
    """Text of one look: ``sgr`` holds the numbers of its escape sequence, ``href`` its target."""

    text: str
    sgr: str = ""
    href: str = ""


Row: TypeAlias = tuple[Span, ...]


class Wrapper:
    """Breaks pieces into rows of at most ``width`` columns, which is 2 or more."""

    def __init__(self, width: int) -> None:
        self.width = width
        self._row: list[Piece] = []
        self._used = 0
        self._break = 0  # the last place in the row where it may end
        self._last: Piece | None = None  # the last piece that is no space
        self._spaced = False

    def copy(self) -> Wrapper:
        """One that goes on from here on its own."""
        other = Wrapper(self.width)
        other._row = self._row.copy()
        other._used, other._break = self._used, self._break
        other._last, other._spaced = self._last, self._spaced
        return other

    @property
    def used(self) -> int:
        """Columns of the row that is not finished."""
        return self._used

    def feed(self, incoming: Iterable[Piece]) -> list[Row]:
        """The rows that ``incoming`` completes."""
        rows: list[Row] = []
        for piece in incoming:
            if piece.first == SPACE:
                if self._row:
                    self._row.append(piece)
                    self._used += piece.width
                    self._spaced = True
                continue
            self._note_break(piece)
            if self._used + piece.width > self.width:
                self._overflow(piece, rows)
            else:
                self._append(piece)
        return rows

    def finish(self) -> list[Row]:
        """The last row, if there is one; the wrapper is empty afterwards."""
        rows = [_spans(self._row)] if self._row else []
        self._start([])
        return rows

    def resize(self, width: int) -> list[Row]:
        """Go on in another width; the rows that no longer fit are completed."""
        held, self.width = self._row, width
        self._start([])
        return self.feed(held)

    def _append(self, piece: Piece) -> None:
        self._row.append(piece)
        self._used += piece.width
        self._last = piece
        self._spaced = False

    def _note_break(self, piece: Piece) -> None:
        last = self._last
        if not self._row or last is None:
            return
        if self._spaced:  # kinsoku holds over a space too
            if piece.first not in (CLOSER, MARK) and last.last not in (OPENER, WORD_OPENER):
                self._break = len(self._row)
        elif may_break(last, piece):
            self._break = len(self._row)

    def _overflow(self, piece: Piece, rows: list[Row]) -> None:
        """``piece`` does not fit any more: end the row where that is allowed, or where it must."""
        if self._break:
            rows.append(_spans(self._row[: self._break]))
            self._start(self._row[self._break :])
        if self._used + piece.width <= self.width:
            self._append(piece)
            return
        if self._row and _starts_no_row(piece):  # takes the character before it along
            carried = self._take_last_character()
            if self._row:
                rows.append(_spans(self._row))
            self._start(carried)
            if self._used + piece.width <= self.width:
                self._append(piece)
                return
        while self._used + piece.width > self.width:
            room = self.width - self._used
            cut = cut_to_width(piece.text, room) if room > 0 else 0
            head = piece._replace(text=piece.text[:cut])
            if cut and (not self._row or upper_width(head.text) <= room):
                self._row.append(head)
                piece = _rest(piece, cut)
            if self._row:
                rows.append(_spans(self._row))
            self._start([])
            if not piece.text:
                return
        self._append(piece)

    def _take_last_character(self) -> list[Piece]:
        """Split the last character off the row, unless it is all there is."""
        piece = self._row.pop()
        if piece.text.isascii() and len(piece.text) > 1:
            self._row.append(_rest(piece, 0, len(piece.text) - 1))
            return [_rest(piece, len(piece.text) - 1)]
        if not self._row:
            self._row.append(piece)
            return []
        return [piece]

    def _start(self, row: list[Piece]) -> None:
        while row and row[0].first == SPACE:
            row = row[1:]
        self._row = row
        self._used = sum(piece.width for piece in row)
        self._break = 0
        self._last = next((one for one in reversed(row) if one.first != SPACE), None)
        self._spaced = bool(row) and row[-1].first == SPACE


def wrap(spans: Iterable[Span], width: int) -> list[Row]:
    """A whole text, in which a span of ``\\n`` ends a line, as rows."""
    wrapper, rows = Wrapper(width), []
    for span in spans:
        if span.text == "\n":
            rows += wrapper.finish() or [()]
        else:
            rows += wrapper.feed(pieces(*span))
    return rows + wrapper.finish()


def row_width(row: Row) -> int:
    """Columns of a row on the terminal that takes most for it."""
    return sum(upper_width(span.text) for span in row)


def row_text(row: Row) -> str:
    """A row without its looks."""
    return "".join(span.text for span in row)


def _starts_no_row(piece: Piece) -> bool:
    return piece.first == CLOSER or (piece.first == WORD_CLOSER and not piece.text[0].isascii())


def split_row(row: Row, width: int) -> tuple[Row, Row]:
    """A row cut where it is too wide: at a space in its last half, or else anywhere."""
    text = row_text(row)
    cut = cut_to_width(text, width)
    if cut >= len(text):
        return row, ()
    space = text.rfind(" ", cut // 2, cut + 1)
    if space > 0 and text[:space].strip():
        cut = space + 1
    head: list[Span] = []
    for index, span in enumerate(row):
        if len(span.text) >= cut:
            head.append(span._replace(text=span.text[:cut]))
            rest = span._replace(text=span.text[cut:])
            return tuple(head), (*((rest,) if rest.text else ()), *row[index + 1 :])
        head.append(span)
        cut -= len(span.text)
    return row, ()


def _rest(piece: Piece, start: int, end: int | None = None) -> Piece:
    text = piece.text[start:end]
    return piece._replace(text=text, width=upper_width(text))


def _spans(row: list[Piece]) -> Row:
    """The pieces of a row put together by look, without the spaces at its end."""
    end = len(row)
    while end and row[end - 1].first == SPACE:
        end -= 1
    spans: list[Span] = []
    for piece in row[:end]:
        if spans and spans[-1].sgr == piece.sgr and spans[-1].href == piece.href:
            spans[-1] = spans[-1]._replace(text=spans[-1].text + piece.text)
        else:
            spans.append(Span(piece.text, piece.sgr, piece.href))
    return tuple(spans)
