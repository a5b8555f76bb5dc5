"""Remarks beside the reply, set apart from it where the terminal can."""

from __future__ import annotations

import re
import textwrap
from typing import TextIO

from rich.console import Console
from rich.text import Text

from xverse_cli.render.columns import columns, wrapped

_INDENT = re.compile(r" *(?:[0-9]+\. )?")
_NARROWEST = 10


def print_remark(text: str, style: str, stream: TextIO) -> None:
    """Print ``text`` in ``style``, wrapped between words."""
    console = Console(file=stream, markup=False, emoji=False, highlight=False)
    lines = [part for line in text.split("\n") for part in _fitted(line, console.width)]
    console.print(Text("\n".join(lines), style=style))
    stream.flush()


def _fitted(line: str, width: int) -> list[str]:
    """The lines that ``line`` makes, indented as its words are; Rich would break Chinese at its few
    spaces alone."""
    start = _INDENT.match(line)
    assert start is not None
    indent = start.end()
    if columns(line) <= width or width - indent < _NARROWEST:
        return [line]
    words, room = line[indent:], width - indent
    if words.isascii():  # a path or an option stays whole where it can
        first, *more = textwrap.wrap(words, room, break_on_hyphens=False)
    else:
        first, *more = wrapped(words, room)
    return [start[0] + first, *(" " * indent + part for part in more)]
