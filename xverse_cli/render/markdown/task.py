"""What is asked of one walk through the source that is not on the screen yet."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Task:
    """The source, and how far to go.

    Args:
        lines: lines that open the frames anew (``fixed`` of them), then what is not written.
        partial: the last line is not complete.
        final: nothing follows.
        preview: write everything as it looks now.
        force: let the last paragraph go as far as it is, whatever is open in it.
        held: how many lines of a table are kept elsewhere.
    """

    lines: list[str]
    fixed: int
    partial: bool = False
    final: bool = False
    preview: bool = False
    force: bool = False
    held: int = 0

    def blank_before(self, line: int) -> bool:
        """Whether an empty line, of a quote maybe, stands before line number ``line``."""
        return line > self.fixed and not self.lines[line - 1].strip("> ")
