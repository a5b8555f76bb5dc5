"""Remarks beside the reply, set apart from it where the terminal can."""

from __future__ import annotations

from typing import TextIO

from rich.console import Console
from rich.text import Text


def print_remark(text: str, style: str, stream: TextIO) -> None:
    """Print ``text`` in ``style``, wrapped between words."""
    console = Console(file=stream, markup=False, emoji=False, highlight=False)
    console.print(Text(text, style=style))
    stream.flush()
