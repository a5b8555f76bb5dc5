"""Goes through the blocks of what is not on the screen yet and writes those that are finished.

The last block may still grow, and so may every quote and list around it. What of it can no longer
change is written too: rows of a paragraph, lines of code, items of a list.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from xverse_cli.render.markdown.frames import Frame, inside, item_frame, quote_frame
from xverse_cli.render.markdown.leaves import Leaves
from xverse_cli.render.markdown.task import Task
from xverse_cli.render.markdown.tree import Block
from xverse_cli.render.markdown.wrap import Span
from xverse_cli.render.markdown.writer import Before, Writer

_TASK = re.compile(r"\[([ xX])\](?: +|\Z)")
_BULLETS = frozenset("-+*")


class Walk:
    """One walk; afterwards ``rest`` says where the source is not written yet.

    Attributes:
        rest: number of the first line to keep.
        leaf: the block that may still grow, if that is where the walk ended.
    """

    def __init__(
        self,
        task: Task,
        writer: Writer,
        leaves: Leaves,
        wants_definition: Callable[[str], bool],
    ) -> None:
        self._task = task
        self._writer = writer
        self.leaves = leaves
        self._wants_definition = wants_definition
        self.rest = task.fixed
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
        if self._task.final or (len(lines) > self.rest + 1 and not _text(lines[-1])):
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
                self.rest = self.leaves.grow(child, depth)
                return False
        self.leaves.write(child, depth, growing)
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

    # Frames

    def _quote(self, child: Block, depth: int, growing: bool) -> bool:
        writer = self._writer
        growing = growing and child.end >= len(self._task.lines)
        if child.start < self._task.fixed:
            return self.blocks(child.children, depth + 1, growing)
        saved = self._save(depth)
        writer.close_to(depth)
        writer.space("quote", blank=self._task.blank_before(child.start))
        writer.open_frame(quote_frame(writer.theme))
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
        writer.space("item", blank=self._task.blank_before(item.start), sign=sign, ordinal=ordinal)
        head = self._task_sign(item) or self._head(sign, ordinal)
        line = inside(self._task.lines[item.start], writer.frames)
        writer.open_frame(item_frame(head, line, ordinal, sign, writer.theme))
        done = self.blocks(item.children, depth + 1, growing) and bool(
            item.children or not growing or self._task.preview
        )
        self.rest = max(self.rest, item.end if done and not item.children else 0)
        return self._frame_end(item, depth, growing, done, saved)

    def _head(self, sign: str, ordinal: int) -> str:
        if sign in ".)":
            return f"{ordinal}{sign}"
        bullets = self._writer.theme.signs.bullets
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
        signs = self._writer.theme.signs
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
        self.leaves.forget()
        return False

    def _definitions(self, end: int, depth: int) -> None:
        """Definitions of links before line ``end``: shown where the reference came too early."""
        start = max(self.rest, self._task.fixed)
        if any(line.strip("> ") for line in self._task.lines[start:end]):
            self.rest = max(self.rest, end)
        for number in range(start, end):
            line = self._task.lines[number].strip("> ")
            if line and self._wants_definition(line) and not self._task.preview:
                self._writer.close_to(min(depth, len(self._writer.frames)))
                self._writer.space("definition", blank=self._task.blank_before(number))
                self._writer.add_flow([Span(line, self._writer.theme.look("target"))])
                self._writer.end_flow()


def _text(line: str) -> str:
    return line.strip("> ")
