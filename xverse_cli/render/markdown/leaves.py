"""Writes the blocks that contain no blocks: whole, or what of them can no longer change."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from markdown_it.token import Token

from xverse_cli.messages import text
from xverse_cli.render.markdown.cells import cut_to_width
from xverse_cli.render.markdown.code import Highlighter
from xverse_cli.render.markdown.frames import before_source, inside
from xverse_cli.render.markdown.inline import spans_of
from xverse_cli.render.markdown.parser import CUT, going_on
from xverse_cli.render.markdown.settled import anywhere, as_if_closed, settled
from xverse_cli.render.markdown.table import Table, table_rows
from xverse_cli.render.markdown.task import Task
from xverse_cli.render.markdown.tree import Block
from xverse_cli.render.markdown.wrap import Span
from xverse_cli.render.markdown.writer import Writer

_DEFINITION = re.compile(r"\[(?:[^\[\]\\]|\\.)*(?:\](?::|\Z)|\Z)")
_FENCE_BEGUN = re.compile(r" *(?:`+|~+)\Z")
_OPENING = re.compile(r"[*_~`]")
_LABEL = re.compile(r"\[((?:[^\[\]\\]|\\.){1,200})\]", re.DOTALL)


class Leaves:
    """Blocks of one walk.

    Args:
        parse_inline: parses a part of a paragraph.
        on_reference: told each label in brackets that goes out.

    Attributes:
        rewritten: takes the place of the source from the paragraph on, when one was cut.
        opener: the line that opens code or mathematics that goes on.
        reopened: what opens the emphasis and code that are open in the last paragraph.
    """

    def __init__(
        self,
        task: Task,
        writer: Writer,
        parse_inline: Callable[[str], Sequence[Token]],
        on_reference: Callable[[str], None],
    ) -> None:
        self._task = task
        self._writer = writer
        self._theme = writer.theme
        self._parse_inline = parse_inline
        self._on_reference = on_reference
        self.rewritten: list[str] | None = None
        self.opener = ""
        self.reopened = ""

    def forget(self) -> None:
        """What was begun is taken back."""
        self.rewritten, self.opener = None, ""

    def write(self, child: Block, depth: int, growing: bool) -> None:
        """Write the whole block.

        Args:
            growing: more of it may come.
        """
        kind = child.kind
        if kind == "paragraph":
            self._paragraph(child, depth, growing)
        elif kind in ("fence", "code"):
            self._code(child, depth, growing)
        elif kind == "maths":
            self._maths(child, depth, growing)
        elif kind == "table":
            self._table(child, depth, growing)
        elif kind == "heading":
            self._heading(child, depth)
        else:
            self._begin(child, depth, kind)
            line = self._theme.signs.line * self._writer.width
            self._writer.put((Span(line, self._theme.look("rule")),))

    def grow(self, child: Block, depth: int) -> int:
        """Write what of the last block can no longer change; the first line to keep."""
        if child.kind == "paragraph":
            self._grow_paragraph(child, depth)
        elif child.kind in ("fence", "code", "maths"):
            return self._grow_lines(child, depth)
        return child.start

    def _begin(self, child: Block, depth: int, kind: str) -> None:
        self._writer.close_to(depth)
        self._writer.space(kind, blank=self._task.blank_before(child.start))

    def _paragraph(self, child: Block, depth: int, growing: bool) -> None:
        writer, source = self._writer, child.source
        if not source.startswith(CUT):
            self._begin(child, depth, "paragraph")
        tokens: Sequence[Token] = child.inline[0].children or []
        if growing and _OPENING.search(source):
            closed, self.reopened = as_if_closed(source)
            tokens = self._parse_inline(closed)
        self._note_references(source)
        writer.add_flow(spans_of(tokens, self._theme))
        if not growing or self._task.preview:
            writer.end_flow()

    def _heading(self, child: Block, depth: int) -> None:
        self._begin(child, depth, "heading")
        look = self._theme.look(child.token.tag)
        tokens = child.inline[0].children or [] if child.inline else []
        self._note_references(child.source)
        spans = spans_of(tokens, self._theme, look)
        if not self._theme.styled:
            spans.insert(0, Span("#" * int(child.token.tag[1]) + " "))
        self._writer.add_flow(spans)
        self._writer.end_flow()

    def _code(self, child: Block, depth: int, growing: bool) -> None:
        task = self._task
        blank = self._open_code(child, depth)
        lines = child.token.content.split("\n")[:-1]
        hidden = growing and task.preview and task.partial and child.kind == "fence"
        if hidden and lines and _FENCE_BEGUN.match(lines[-1]):
            lines.pop()  # most likely the end of the code
        self._code_lines(blank, lines)
        if not growing:
            self._writer.code = None
        elif child.kind == "fence":
            self._set_opener(child)

    def _open_code(self, child: Block, depth: int) -> int:
        """Begin or go on with code; how many empty lines stand before what comes."""
        writer, task = self._writer, self._task
        if child.start < task.fixed and writer.code is not None:
            return 0
        if child.kind == "code" and writer.code is not None and child.start >= task.fixed:
            return child.start - task.fixed  # between two indented parts
        self._begin(child, depth, "code")
        info = child.token.info if child.kind == "fence" else ""
        writer.code = Highlighter(info, self._theme)
        if info.strip():
            writer.put_code((Span(info.strip(), self._theme.look("label")),))
        return 0

    def _code_lines(self, blank: int, lines: Sequence[str]) -> None:
        writer = self._writer
        for line in [*[""] * blank, *lines]:
            assert writer.code is not None
            row = writer.code.line(line)
            writer.put_code(row)

    def _maths(self, child: Block, depth: int, growing: bool) -> None:
        self._maths_lines(child, depth, child.token.content.rstrip("\n").split("\n"))
        if not growing:
            self.opener = ""

    def _maths_lines(self, child: Block, depth: int, lines: Sequence[str]) -> None:
        continues = child.start < self._task.fixed
        if not continues:
            self._begin(child, depth, "maths")
        look = self._theme.look("maths")
        for line in lines[1:] if continues else lines:
            self._writer.put_code((Span(line, look),) if line else ())
        self._set_opener(child)

    def _table(self, child: Block, depth: int, growing: bool) -> None:
        writer, theme = self._writer, self._theme
        columns = len(child.headers)
        if growing and self._task.preview:
            self._begin(child, depth, "table")
            count = child.end - child.start - 2 + self._task.held
            if self._task.partial:
                count -= 1
            line = text("render.table", rows=max(0, count), columns=columns)
            shown = line[: cut_to_width(line, writer.width)]
            writer.put((Span(shown, theme.look("waiting")),))
            return
        self._begin(child, depth, "table")
        looks = [theme.look("th")] * columns + [""] * (len(child.inline) - columns)
        cells = [
            spans_of(one.children or [], theme, look, in_cell=True)
            for one, look in zip(child.inline, looks, strict=True)
        ]
        for one in child.inline:
            self._note_references(one.content)
        aligned = [str(token.attrs.get("style", "")).rpartition(":")[2] for token in child.headers]
        rows = [cells[at : at + columns] for at in range(columns, len(cells), columns)]
        for row in table_rows(Table(cells[:columns], rows, aligned), theme, writer.width):
            writer.put(row)

    def _grow_lines(self, child: Block, depth: int) -> int:
        """Write the complete lines of code or mathematics."""
        task = self._task
        end = child.end - (task.partial and child.end == len(task.lines))
        content = (
            child.token.content.rstrip("\n") + "\n"
            if child.kind == "maths"
            else child.token.content
        )
        lines = content.split("\n")[:-1]
        closed = child.kind == "fence" and child.end - child.start == len(lines) + 2
        if end < child.end and not closed:
            lines = lines[:-1]
        if end <= child.start or not (lines or child.token.info.strip()):
            return child.start
        if child.kind == "maths":
            self._maths_lines(child, depth, lines)
        else:
            self._code_lines(self._open_code(child, depth), lines)
            if child.kind == "fence":
                self._set_opener(child)
        return max(task.fixed, end)

    def _set_opener(self, child: Block) -> None:
        """Remember the line that makes what follows go on as code or mathematics."""
        task, frames = self._task, self._writer.frames
        if child.start < task.fixed:
            self.opener = task.lines[task.fixed - 1]
            return
        token = child.token
        line = token.markup + token.info if child.kind == "fence" else token.content.strip()[:2]
        # The lines of code lose as many spaces as stand before its fence.
        source = inside(task.lines[child.start], frames)
        indent = len(source) - len(source.lstrip(" "))
        if not source[indent:].startswith(line[:2]):  # it stands behind the marker of an item
            indent = 0
        self.opener = before_source(frames) + " " * indent + line

    def _grow_paragraph(self, child: Block, depth: int) -> None:
        """Write the rows of a paragraph that can no longer change."""
        task, writer = self._task, self._writer
        source = child.source
        cut = source.startswith(CUT)
        width = writer.width
        used = writer.flow.used if cut and writer.flow is not None else 0
        if used + 2 * len(source) <= width:
            return
        if task.force:
            place = anywhere(source)
        elif not cut and _DEFINITION.match(source):
            return
        else:
            last = source.rfind("\n") + 1
            place = settled(source, last if "|" in source[last:] else None)
        if place <= (len(CUT) + 1 if cut else 0):
            return
        tokens = self._parse_inline(source[:place])
        spans = spans_of(tokens, self._theme)
        trial = writer.copy()
        if not cut:
            trial.close_to(depth)
        trial.add_flow(spans)
        if not trial.rows:
            return
        if not cut:
            self._begin(child, depth, "paragraph")
        self._note_references(source[:place])
        writer.add_flow(spans)
        before = before_source(writer.frames)
        rest = going_on(source[place - 1]) + source[place:]
        trailing = task.lines[-1][len(task.lines[-1].rstrip(" ")) :]
        lines = [before + line for line in rest.split("\n")]
        self.rewritten = [*lines[:-1], lines[-1] + trailing]

    def _note_references(self, source: str) -> None:
        for label in _LABEL.findall(source) if "[" in source else ():
            self._on_reference(label)
