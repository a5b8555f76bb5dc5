"""Markdown that comes in pieces of any size, as rows that are final and a tail that is not.

What is written when depends on the text and on the size of the screen, never on how the text was
cut: whatever comes is taken in steps of the same length, to the end of a line or as many characters
as a row has columns. docs/rendering.md says where that differs from reading the whole text first.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from copy import copy

from markdown_it.common.utils import normalizeReference
from markdown_it.token import Token

from xverse_cli.render.markdown.frames import before_source, openings
from xverse_cli.render.markdown.leaves import Leaves
from xverse_cli.render.markdown.parser import MOST_FRAMES, going_on, not_too_deep, parser
from xverse_cli.render.markdown.task import Task
from xverse_cli.render.markdown.theme import Theme
from xverse_cli.render.markdown.tree import Block, blocks_of
from xverse_cli.render.markdown.walk import Walk
from xverse_cli.render.markdown.wrap import Row
from xverse_cli.render.markdown.writer import Writer
from xverse_cli.render.sanitize import Sanitizer

_TAB = 4
_MOST_TABLE_LINES = 400
_MOST_REFERENCES = 1000
_MOST_SOURCE = 8192  # characters that may wait for anything at all
_DEFINED = re.compile(r"\[((?:[^\[\]\\]|\\.)+)\]:")
# A line of these alone may become an underline, a rule, a fence, a marker or a row of dashes.
_UNCLEAR = re.compile(r"[\s\-=*_+~`#>|:.)0-9]*\Z")
_MOST_UNCLEAR = 1000
_LINE_ENDS = re.compile("[\u2028\u2029]")


class MarkdownStream:
    """Renders one reply.

    Args:
        columns: of the screen, at least 2.
        rows: of the screen; what waits for its end is kept well below.
    """

    def __init__(self, theme: Theme, columns: int, rows: int) -> None:
        self._sanitizer = Sanitizer()
        self._writer = Writer(theme, max(2, columns))
        self._screen_rows = rows
        self._lines: list[str] = []  # complete lines that are not written
        self._partial = ""
        self._since = 0  # characters since the last step
        self._opener = ""  # the line of an open fence
        self._held: list[str] = []  # further lines of an open table
        self._table_begun = False
        self._references: dict[str, object] = {}
        self._unresolved: set[str] = set()
        self._shows_definition = False
        self._tail: list[Row] | None = []

    def copy(self) -> MarkdownStream:
        """One that goes on from here on its own."""
        other = copy(self)
        other._sanitizer, other._writer = copy(self._sanitizer), self._writer.copy()
        other._lines, other._held = self._lines.copy(), self._held.copy()
        other._references, other._unresolved = self._references.copy(), self._unresolved.copy()
        return other

    def feed(self, text: str) -> list[Row]:
        """Take the next piece; the rows that are final now."""
        text = _LINE_ENDS.sub("\n", self._sanitizer.feed(text))
        at = 0
        while at < len(text):
            end = min(len(text), at + self._writer.columns - self._since)
            newline = text.find("\n", at, end)
            if newline < 0:
                self._take(text[at:end])
                self._since += end - at
                at = end
                if self._since == self._writer.columns:
                    self._since = 0
                    self._step_within_line()
            else:
                self._take(text[at:newline])
                at = newline + 1
                self._since = 0
                self._lines.append(self._partial)
                self._partial = ""
                self._step()
        if text:
            self._tail = None
        return self._writer.take()

    def finish(self) -> list[Row]:
        """The text is over: the rows that are left."""
        if self._partial:
            self._lines.append(self._partial)
            self._partial = ""
        self._release_table()
        self._walk(Task(self._source(), self._fixed, final=True))
        self._writer.close_to(0)
        self._lines, self._tail = [], []
        return self._writer.take()

    def tail(self) -> list[Row]:
        """How what is not final looks now."""
        if self._tail is None:
            writer = self._writer.copy()
            task = Task(
                self._with_partial(),
                self._fixed,
                partial=bool(self._partial),
                preview=True,
                held=len(self._held),
            )
            if len(task.lines) > self._fixed or writer.flow is not None:
                self._walk(task, writer)
            writer.end_flow()
            self._tail = writer.take()
        return self._tail

    def resize(self, columns: int, rows: int) -> list[Row]:
        """The screen has another size from here on; the rows that this completes."""
        self._screen_rows = rows
        self._since = 0
        self._tail = None
        self._writer.resize(max(2, columns))
        return self._writer.take()

    def freeze(self, count: int) -> list[Row]:
        """Make the first ``count`` rows of the tail final as they are, and maybe all of them."""
        shown = self.tail()
        if not shown or count <= 0:
            return []
        self._settle(last_row=count >= len(shown))
        self._tail = None
        return self._writer.take()

    # Steps

    @property
    def _fixed(self) -> int:
        return len(self._writer.frames) + bool(self._opener)

    def _source(self) -> list[str]:
        """What is not written, with the lines that open the frames again before it."""
        opener = [self._opener] if self._opener else []
        lines = self._lines if opener else map(not_too_deep, self._lines)
        return [*openings(self._writer.frames), *opener, *lines]

    def _with_partial(self) -> list[str]:
        partial = self._partial if self._opener else not_too_deep(self._partial)
        return [*self._source(), *([partial] if partial else [])]

    def _take(self, text: str) -> None:
        if "\t" not in text:
            self._partial += text
            return
        for part in re.split("(\t)", text):
            self._partial += " " * (_TAB - len(self._partial) % _TAB) if part == "\t" else part

    def _step(self) -> None:
        """A line is complete."""
        if self._held or self._table_begun:
            if self._table_goes_on():
                return
            self._release_table()
        self._advance(Task(self._source(), self._fixed))

    def _step_within_line(self) -> None:
        unclear = len(self._partial) < _MOST_UNCLEAR and _UNCLEAR.match(self._partial)
        if not unclear and not self._held and not self._table_begun:
            self._advance(Task(self._with_partial(), self._fixed, partial=True))

    def _advance(self, task: Task) -> None:
        walk = self._walk(task)
        self._keep(walk, task)
        if walk.leaf is not None and walk.leaf.kind == "table":
            self._hold_table(walk.leaf, task)
        elif self._waits_too_long():
            self._force()

    def _walk(self, task: Task, writer: Writer | None = None) -> Walk:
        environment = {"references": self._references}
        if task.preview or task.partial:
            environment = {"references": dict(self._references)}

        def parse_inline(source: str) -> Sequence[Token]:
            return parser().parseInline(source, environment)[0].children or []

        on_reference = (lambda label: None) if task.preview else self._refer
        leaves = Leaves(task, writer or self._writer, parse_inline, on_reference)
        walk = Walk(task, writer or self._writer, leaves, self._wants_definition)
        tokens = parser().parse("\n".join(task.lines) + "\n", environment)
        walk.blocks(blocks_of(tokens), 0, not task.final or task.force)
        walk.definitions_at_end()
        return walk

    def _keep(self, walk: Walk, task: Task) -> None:
        """Remember what the walk has not written."""
        rest = walk.rest
        between = not walk.leaves.opener and self._writer.code is None
        if between and rest > task.fixed and not _text(task.lines[rest - 1]):
            rest -= 1  # an empty line tells how the next block is set off
        rewritten = walk.leaves.rewritten
        lines = rewritten if rewritten is not None else task.lines[rest:]
        while len(lines) > 1 and self._writer.code is None and not any(map(_text, lines[:2])):
            lines = lines[1:]
        self._opener = walk.leaves.opener
        if len(self._writer.frames) > MOST_FRAMES:
            self._writer.close_to(0)
            self._opener = ""
        self._partial = lines[-1] if task.partial and lines else ""
        self._lines = lines[:-1] if task.partial else lines

    # Text that waits too long

    def _waits_too_long(self) -> bool:
        """Whether the tail fills more than half of the screen."""
        characters = sum(map(len, self._lines)) + len(self._partial)
        most = max(3, self._screen_rows // 2)
        if len(self._lines) + 2 * characters // self._writer.columns < most:
            return False
        self._tail = None
        return len(self.tail()) > most or characters > _MOST_SOURCE

    def _force(self) -> None:
        """Let go what waits, as it looks now."""
        partial = bool(self._partial)
        task = Task(self._with_partial(), self._fixed, partial=partial, force=True)
        before = len(self._writer.rows)
        walk = self._walk(task)
        self._keep(walk, task)
        if len(self._writer.rows) == before:
            self._settle(last_row=True)

    def _settle(self, *, last_row: bool) -> None:
        """Write everything as it looks; what comes goes on with the same block.

        Args:
            last_row: also the last row of a paragraph, which then goes on in a new one.
        """
        if self._held:
            return
        writer, partial = self._writer, self._partial
        lines = self._with_partial()
        walk = self._walk(Task(lines, self._fixed, bool(partial), final=True, force=True))
        leaf, self._lines, self._opener = walk.leaf, [], walk.leaves.opener
        if last_row:
            writer.break_flow()
        if leaf is not None and leaf.kind in ("fence", "maths") and walk.leaves.opener:
            self._partial = ""
        elif leaf is not None and leaf.kind == "code":
            self._partial = before_source(writer.frames) + " " * 4 if partial else ""
        elif partial.strip() or (leaf is not None and leaf.kind == "paragraph"):
            rest = going_on(lines[-1].rstrip()[-1:] or " ") + walk.leaves.reopened
            rest = before_source(writer.frames) + rest
            if partial:
                self._partial = rest + partial[len(partial.rstrip(" ")) :]
            else:
                self._lines = [rest]

    # Tables

    def _table_goes_on(self) -> bool:
        """Whether the line just complete is one more row; it is put aside then."""
        lines = self._source()
        walk = self._walk(Task(lines, self._fixed, preview=True), self._writer.copy())
        table = walk.leaf
        if table is None or table.kind != "table" or table.end < len(lines):
            return False
        self._hold_table(table, Task(lines, self._fixed))
        return True

    def _hold_table(self, table: Block, task: Task) -> None:
        """Keep the header in the source and the other lines aside."""
        if task.partial:
            return
        body = table.start - task.fixed + 2
        self._held += self._lines[body:]
        del self._lines[body:]
        if len(self._held) >= _MOST_TABLE_LINES:
            header = self._lines[-2:]
            self._release_table()
            self._walk(Task(self._source(), self._fixed, final=True))
            self._lines, self._table_begun = header, True

    def _release_table(self) -> None:
        """Put the lines that were kept aside back into the source."""
        header = 2 + (not _text(self._lines[0])) if self._lines else 0
        if self._held:
            self._lines[header:header] = self._held
        elif self._table_begun:  # nothing came after the part that is out
            del self._lines[:header]
        self._held, self._table_begun = [], False

    # References

    def _refer(self, label: str) -> None:
        label = normalizeReference(label)
        if label not in self._references and len(self._unresolved) < _MOST_REFERENCES:
            self._unresolved.add(label)

    def _wants_definition(self, line: str) -> bool:
        """Whether a line of definitions is shown: a reference to it is out as plain text."""
        match = _DEFINED.match(line)
        if match is not None:
            self._shows_definition = normalizeReference(match[1]) in self._unresolved
        return self._shows_definition


def _text(line: str) -> str:
    return line.strip("> ")
