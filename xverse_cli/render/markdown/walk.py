"""Goes through the blocks of what is not on the screen yet and writes those that are finished.

The last block may still grow, and so may every quote and list around it. What of it can no longer
change is written too: rows of a paragraph, lines of code, items of a list.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markdown_it.token import Token

from xverse_cli.render.markdown.cells import upper_width
from xverse_cli.render.markdown.code import Highlighter
from xverse_cli.render.markdown.frames import Frame, before_source, inside, item_frame, quote_frame
from xverse_cli.render.markdown.inline import spans_of
from xverse_cli.render.markdown.parser import CUT, going_on
from xverse_cli.render.markdown.settled import anywhere, settled
from xverse_cli.render.markdown.table import Table, table_rows
from xverse_cli.render.markdown.tree import Block
from xverse_cli.render.markdown.wrap import Span
from xverse_cli.render.markdown.writer import Before, Writer

_TASK = re.compile(r"\[([ xX])\](?: +|\Z)")
_DEFINITION = re.compile(r"\[(?:[^\[\]\\]|\\.)*(?:\](?::|\Z)|\Z)")
_FENCE_BEGUN = re.compile(r" *(?:`+|~+)\Z")
_BULLETS = frozenset("-+*")
_LABEL = re.compile(r"\[((?:[^\[\]\\]|\\.){1,200})\]", re.DOTALL)


@dataclass
class Task:
    """What a walk is to do.

    Args:
        lines: the source: lines that open the frames (``fixed`` of them), then what is new.
        partial: the last line is not complete.
        final: nothing follows.
        preview: write everything as it looks now.
        force: let the last paragraph go as far as it is, whatever is open in it.
        held: lines of a table that are kept elsewhere.
    """

    lines: list[str]
    fixed: int
    partial: bool = False
    final: bool = False
    preview: bool = False
    force: bool = False
    held: int = 0


class Walk:
    """One walk; afterwards ``rest`` says where the source is not written yet.

    Attributes:
        rest: number of the first line to keep.
        rewritten: takes the place of the lines from ``rest`` on, when a paragraph was cut.
        opener: line that opens the code or mathematics that goes on.
        leaf: the block that may still grow, if that is where the walk ended.
    """

    def __init__(
        self,
        task: Task,
        writer: Writer,
        parse_inline: Callable[[str], Sequence[Token]],
        on_reference: Callable[[str], None],
        wants_definition: Callable[[str], bool],
    ) -> None:
        self._task = task
        self._writer = writer
        self._theme = writer.theme
        self._parse_inline = parse_inline
        self._on_reference = on_reference
        self._wants_definition = wants_definition
        self.rest = task.fixed
        self.rewritten: list[str] | None = None
        self.opener = ""
        self.leaf: Block | None = None

    def blocks(self, children: Sequence[Block], depth: int, growing: bool) -> bool:
        """Write blocks of one frame; whether all of them are out."""
        for index, child in enumerate(children):
            last = index == len(children) - 1
            self._definitions(child.start, depth)
            if not self._block(child, depth, growing and last):
                return False
        return True

    def definitions_at_end(self) -> None:
        """Definitions that are over: an empty line, another one, or nothing at all follows."""
        lines = self._task.lines
        if self._task.final or (len(lines) > self.rest + 1 and not lines[-1].strip("> ")):
            self._definitions(len(lines), 0)
        elif self.leaf is None:
            begun = [
                number
                for number in range(self.rest, len(lines))
                if lines[number].strip("> ").startswith("[")
            ]
            if len(begun) > 1:
                self._definitions(begun[-1], 0)

    def _block(self, child: Block, depth: int, growing: bool) -> bool:
        if child.kind == "list":
            return self._list(child, depth, growing)
        if child.kind == "quote":
            return self._quote(child, depth, growing)
        if child.start < self._task.fixed and child.kind == "heading":
            return True
        growing = growing and not self._is_over(child)
        if growing:
            self.leaf = child
            if not self._task.preview and not self._task.final:
                return self._growing_leaf(child, depth)
        self._leaf(child, depth, growing)
        self.rest = max(self.rest, child.end)
        return True

    def _is_over(self, child: Block) -> bool:
        """Whether the last block can no longer change."""
        task = self._task
        if child.end < len(task.lines):
            return child.kind not in ("code", "list")
        if task.partial:
            return False
        if child.kind == "fence":
            return child.end - child.start == child.token.content.count("\n") + 2
        if child.kind == "maths":
            return bool(child.token.meta["closed"])
        return child.kind in ("heading", "rule")

    def _blank_before(self, line: int) -> bool:
        above = self._task.lines[line - 1] if line > self._task.fixed else "x"
        return not above.strip("> ")

    # Frames

    def _quote(self, child: Block, depth: int, growing: bool) -> bool:
        writer = self._writer
        growing = growing and child.end >= len(self._task.lines)
        if child.start < self._task.fixed:
            return self.blocks(child.children, depth + 1, growing)
        saved = self._save(depth)
        writer.close_to(depth)
        writer.space("quote", blank=self._blank_before(child.start))
        writer.open_frame(quote_frame(self._theme))
        done = self.blocks(child.children, depth + 1, growing)
        return self._frame_end(child, depth, growing, done, saved)

    def _list(self, child: Block, depth: int, growing: bool) -> bool:
        first = int(child.token.attrs.get("start", 1)) if child.token.tag == "ol" else 0
        for item in child.children:
            last = growing and item is child.children[-1]
            if item.start < self._task.fixed:
                done = self.blocks(item.children, depth + 1, last)
            else:
                done = self._item(item, depth, first, last)
            if not done:
                return False
        return True

    def _item(self, item: Block, depth: int, ordinal: int, growing: bool) -> bool:
        writer = self._writer
        saved = self._save(depth)
        writer.close_to(depth)
        before, sign = writer.before[-1], item.token.markup
        if before is not None and before.kind == "item" and before.sign == sign:
            ordinal = before.ordinal + 1  # the list goes on, whatever number is written
        writer.space("item", blank=self._blank_before(item.start), sign=sign, ordinal=ordinal)
        head = self._task_sign(item) or self._head(sign, ordinal)
        line = inside(self._task.lines[item.start], writer.frames)
        writer.open_frame(item_frame(head, line, ordinal, sign, self._theme))
        done = self.blocks(item.children, depth + 1, growing) and bool(
            item.children or not growing or self._task.preview
        )
        self.rest = max(self.rest, item.end if done and not item.children else 0)
        return self._frame_end(item, depth, growing, done, saved)

    def _head(self, sign: str, ordinal: int) -> str:
        if sign in ".)":
            return f"{ordinal}{sign}"
        bullets = self._theme.signs.bullets
        level = sum(one.sign in _BULLETS for one in self._writer.frames)
        return bullets[level % len(bullets)]

    def _task_sign(self, item: Block) -> str:
        """The box of a task, which is taken out of its text."""
        first = item.children[0] if item.children else None
        if first is None or first.kind != "paragraph" or not first.inline:
            return ""
        inline = first.inline[0]
        match = _TASK.match(inline.content)
        if match is None or not inline.children or inline.children[0].type != "text":
            return ""
        inline.content = inline.content[match.end() :]
        inline.children[0].content = inline.children[0].content[match.end() :]
        signs = self._theme.signs
        return signs.open_task if match[1] == " " else signs.done_task

    def _save(self, depth: int) -> tuple[list[Frame], list[Before | None], int]:
        writer = self._writer
        return writer.frames[:depth], writer.before[: depth + 1], len(writer.rows)

    def _frame_end(
        self,
        child: Block,
        depth: int,
        growing: bool,
        done: bool,
        saved: tuple[list[Frame], list[Before | None], int],
    ) -> bool:
        """An empty frame shows itself; if it still grows it is taken back, and read again later."""
        writer, task = self._writer, self._task
        if writer.frames[depth].begun:
            return done
        if not growing or task.preview or task.final:  # there is nothing in it
            writer.close_to(depth + 1)
            writer.put(())
            return done
        writer.frames, writer.before, rows = saved
        del writer.rows[rows:]
        self.rest = child.start
        self.rewritten, self.opener = None, ""
        return False

    # Blocks without blocks inside

    def _begin(self, child: Block, depth: int, kind: str) -> None:
        self._writer.close_to(depth)
        self._writer.space(kind, blank=self._blank_before(child.start))

    def _leaf(self, child: Block, depth: int, growing: bool) -> None:
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

    def _paragraph(self, child: Block, depth: int, growing: bool) -> None:
        writer = self._writer
        source = child.source
        if not source.startswith(CUT):
            self._begin(child, depth, "paragraph")
        tokens = child.inline[0].children or []
        self._note_references(source)
        writer.add_flow(spans_of(tokens, self._theme))
        keeps = growing and self._task.final and self._task.force
        if not keeps:
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
        continues = child.start < task.fixed
        blank = self._open_code(child, depth)
        lines = child.token.content.split("\n")[:-1]
        hidden = growing and task.preview and task.partial and child.kind == "fence"
        if hidden and lines and _FENCE_BEGUN.match(lines[-1]):
            lines.pop()  # most likely the end of the code
        self._code_lines(blank, lines)
        if not growing:
            self._writer.code = None
        elif child.kind == "fence":
            self._set_opener(continues, child.token.markup + child.token.info)

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
            writer.put((Span("  "), Span(info.strip(), self._theme.look("label"))))
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
        self._set_opener(continues, lines[0].strip()[:2] if lines else "")

    def _table(self, child: Block, depth: int, growing: bool) -> None:
        writer, theme = self._writer, self._theme
        columns = len(child.headers)
        if growing and self._task.preview:
            self._begin(child, depth, "table")
            count = child.end - child.start - 2 + self._task.held
            if self._task.partial:
                count -= 1
            text = f"{theme.signs.ellipsis} {max(0, count)} × {columns}"
            if upper_width(text) <= writer.width:
                writer.put((Span(text, theme.look("waiting")),))
            return
        self._begin(child, depth, "table")
        cells = [spans_of(one.children or [], theme) for one in child.inline]
        heads = [
            spans_of(one.children or [], theme, theme.look("th")) for one in child.inline[:columns]
        ]
        for one in child.inline:
            self._note_references(one.content)
        aligned = [str(token.attrs.get("style", "")).rpartition(":")[2] for token in child.headers]
        rows = [cells[at : at + columns] for at in range(columns, len(cells), columns)]
        for row in table_rows(Table(heads, rows, aligned), theme, writer.width):
            writer.put(row)

    # What may still grow

    def _growing_leaf(self, child: Block, depth: int) -> bool:
        self.rest = child.start
        if child.kind == "paragraph":
            return self._grow_paragraph(child, depth)
        if child.kind in ("fence", "code", "maths"):
            return self._grow_lines(child, depth)
        return False

    def _grow_lines(self, child: Block, depth: int) -> bool:
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
            return False
        if child.kind == "maths":
            self._maths_lines(child, depth, lines)
        else:
            continues = child.start < task.fixed
            self._code_lines(self._open_code(child, depth), lines)
            if child.kind == "fence":
                self._set_opener(continues, child.token.markup + child.token.info)
        self.rest = max(task.fixed, end)
        return False

    def _set_opener(self, continues: bool, line: str) -> None:
        """Remember the line that makes what follows go on as code or mathematics."""
        task = self._task
        before = before_source(self._writer.frames)
        self.opener = task.lines[task.fixed - 1] if continues else before + line

    def _grow_paragraph(self, child: Block, depth: int) -> bool:
        """Write the rows of a paragraph that can no longer change."""
        task, writer = self._task, self._writer
        source = child.source
        cut = source.startswith(CUT)
        width = writer.width
        used = writer.flow.used if cut and writer.flow is not None else 0
        if used + 2 * len(source) <= width:
            return False
        if task.force:
            place = anywhere(source)
        elif not cut and _DEFINITION.match(source):
            return False
        else:
            last = source.rfind("\n") + 1
            place = settled(source, last if "|" in source[last:] else None)
        if place <= (len(CUT) + 1 if cut else 0):
            return False
        tokens = self._parse_inline(source[:place])
        spans = spans_of(tokens, self._theme)
        trial = writer.copy()
        if not cut:
            trial.close_to(depth)
        trial.add_flow(spans)
        if not trial.rows:
            return False
        if not cut:
            self._begin(child, depth, "paragraph")
        self._note_references(source[:place])
        writer.add_flow(spans)
        before = before_source(writer.frames)
        rest = going_on(source[place - 1]) + source[place:]
        trailing = task.lines[-1][len(task.lines[-1].rstrip(" ")) :]
        lines = [before + line for line in rest.split("\n")]
        self.rewritten = [*lines[:-1], lines[-1] + trailing]
        self.rest = child.start
        return False

    # References

    def _note_references(self, source: str) -> None:
        for label in _LABEL.findall(source) if "[" in source else ():
            self._on_reference(label)

    def _definitions(self, end: int, depth: int) -> None:
        """Definitions of links before line ``end``: shown where the reference came too early."""
        start = max(self.rest, self._task.fixed)
        if any(line.strip("> ") for line in self._task.lines[start:end]):
            self.rest = max(self.rest, end)
        for number in range(start, end):
            line = self._task.lines[number].strip("> ")
            if line and self._wants_definition(line) and not self._task.preview:
                self._writer.close_to(min(depth, len(self._writer.frames)))
                self._writer.space("definition", blank=self._blank_before(number))
                self._writer.add_flow([Span(line, self._theme.look("target"))])
                self._writer.end_flow()
