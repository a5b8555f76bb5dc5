"""Writes blocks as rows: spacing, what stands before them, and what goes on from row to row."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from xverse_cli.render.markdown.cells import pieces
from xverse_cli.render.markdown.code import Highlighter
from xverse_cli.render.markdown.frames import Frame, begin, heads, without_room
from xverse_cli.render.markdown.inline import NEWLINE
from xverse_cli.render.markdown.theme import Theme
from xverse_cli.render.markdown.wrap import Row, Span, Wrapper, row_text, row_width, split_row, wrap

_INDENT = Span("  ")  # before code


@dataclass(frozen=True)
class Before:
    """The block before, in the same frame; for an item its list's sign and its number."""

    kind: str
    sign: str = ""
    ordinal: int = 0


class Writer:
    """Collects rows; `copy` lets a preview go on without changing this one."""

    def __init__(self, theme: Theme, columns: int) -> None:
        self.theme = theme
        self.columns = columns
        self.frames: list[Frame] = []
        self.before: list[Before | None] = [None]  # one for each frame, and the outside
        self.rows: list[Row] = []
        self.flow: Wrapper | None = None
        self.code: Highlighter | None = None

    def copy(self) -> Writer:
        other = Writer(self.theme, self.columns)
        other.frames = self.frames.copy()
        other.before = self.before.copy()
        other.flow = self.flow.copy() if self.flow else None
        other.code = self.code.copy() if self.code else None
        return other

    def take(self) -> list[Row]:
        """The rows written since the last time."""
        rows, self.rows = self.rows, []
        return rows

    @property
    def width(self) -> int:
        """Columns for what stands inside the frames."""
        return max(2, self.columns - row_width(self._heads()))

    def close_to(self, depth: int) -> None:
        """Leave the frames inside ``depth``, and whatever goes on there."""
        self.end_flow()
        self.code = None
        del self.frames[depth:]
        del self.before[depth + 1 :]

    def open_frame(self, frame: Frame) -> None:
        self.frames.append(frame)
        self.before.append(None)

    def space(self, kind: str, *, blank: bool, sign: str = "", ordinal: int = 0) -> None:
        """A block begins in the innermost frame: an empty row before it, where there should be one.

        Args:
            blank: an empty line stands before it in the source.
        """
        before = self.before[-1]
        if before is not None and self._wants_space(before, kind, blank):
            row = self._heads()
            self.rows.append(_trimmed(row))
        self.before[-1] = Before(kind, sign, ordinal)

    def _wants_space(self, before: Before, kind: str, blank: bool) -> bool:
        in_item = bool(self.frames) and self.frames[-1].kind == "item"
        if blank or (kind == "item" and before.kind == "item") or in_item:
            return blank
        return not (before.kind == "paragraph" and kind == "item")

    def put(self, row: Row) -> None:
        """A row inside the frames."""
        for alone in wrap(without_room(self.frames, self.columns // 2), self.columns):
            self.rows.append(alone)
        self.rows.append(_trimmed((*self._heads(), *row)))
        self.frames = begin(self.frames)

    def put_code(self, line: Row) -> None:
        """A line of code or mathematics; where it is too wide, it goes on further to the right."""
        width = max(2, self.width - len(_INDENT.text))
        if row_width(line) <= width:
            self.put((_INDENT, *line) if line else ())
            return
        text = row_text(line)
        hanging = min(len(text) - len(text.lstrip(" ")) + 4, width // 2)
        before: tuple[Span, ...] = (_INDENT,)
        room = width
        while line:
            head, line = split_row(line, room)
            self.put((*before, *head))
            before, room = (_INDENT, Span(" " * hanging)), width - hanging

    def add_flow(self, spans: Iterable[Span]) -> None:
        """Text that is wrapped and may go on."""
        flow = self.flow
        if flow is None:
            flow = self.flow = Wrapper(self.width)
        for span in spans:
            over = span.text == NEWLINE
            rows = (flow.finish() or [()]) if over else flow.feed(pieces(*span))
            for row in rows:
                self.put(row)

    def end_flow(self) -> None:
        """The text is over."""
        if self.flow is not None:
            for row in self.flow.finish():
                self.put(row)
            self.flow = None

    def break_flow(self) -> None:
        """The row that is not full yet goes out, and the text goes on in the next one."""
        if self.flow is not None:
            for row in self.flow.finish():
                self.put(row)

    def resize(self, columns: int) -> None:
        self.columns = columns
        if self.flow is not None:
            for row in self.flow.resize(self.width):
                self.put(row)

    def _heads(self) -> Row:
        return heads(self.frames, self.columns // 2)


def _trimmed(row: Sequence[Span]) -> Row:
    """``row`` without spaces at its end."""
    end = len(row)
    while end and not row[end - 1].text.strip(" "):
        end -= 1
    if end and row[end - 1].text.endswith(" "):
        last = row[end - 1]
        return (*row[: end - 1], last._replace(text=last.text.rstrip(" ")))
    return tuple(row[:end])
