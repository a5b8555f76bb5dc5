"""Remarks beside the reply, set apart from it where the terminal can."""

from __future__ import annotations

from typing import TextIO

from rich.console import Console
from rich.text import Text

from xverse_cli.render.columns import columns, wrapped


def print_remark(text: str, style: str, stream: TextIO) -> None:
    """Print ``text`` in ``style``, wrapped between words."""
    console = Console(file=stream, markup=False, emoji=False, highlight=False)
    lines = [part for line in text.split("\n") for part in _fitted(line, console.width)]
    console.print(Text("\n".join(lines), style=style))
    stream.flush()


def _fitted(line: str, width: int) -> list[str]:
    """The lines that ``line`` makes; Rich would break Chinese at its few spaces alone."""
    words = line.lstrip()
    indent = line[: len(line) - len(words)]
    if line.isascii() or columns(line) <= width:
        return [line]
    return [indent + part for part in wrapped(words, width - len(indent))]
