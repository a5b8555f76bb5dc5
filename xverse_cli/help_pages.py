"""Help pages in the language in use, wrapped and aligned by columns."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import typer

from xverse_cli.messages import text
from xverse_cli.render.columns import columns, padded, wrapped

# Typer carries its own copy of click, whose classes it exports only in part.
_TyperPage: Any = typer.Context.formatter_class
_DEFAULT = re.compile(r"default: \(?(.*?)\)?")  # in brackets where it is told, not taken
_EXTRA = re.compile(r"(?:(?P<words>.*)  )?\[(?P<extra>[^][]*)\]", re.DOTALL)
_WIDEST_NAME = 30
_GAP = 2


def with_our_help(command: Any) -> Any:
    """``command``, which Typer made, and all below it, with these pages for their help."""
    command.context_class = _Context
    for below in getattr(command, "commands", {}).values():
        below.short_help = _first_sentence(below.help or "")
        with_our_help(below)
    return command


def _first_sentence(words: str) -> str | None:
    """What stands in a list of commands; ``None`` leaves it to Typer, which knows ASCII's stop."""
    sentence, stop, _ = words.partition("。")
    return sentence + stop if stop else None


class _Page(_TyperPage):  # type: ignore[misc]
    """What Typer writes a page with; it counts characters, and knows English alone."""

    def write_usage(self, prog: str, args: str = "", prefix: str | None = None) -> None:
        super().write_usage(prog, args, text("help.usage"))

    def write_heading(self, heading: str) -> None:
        worded = {
            "Arguments": text("help.arguments"),
            "Options": text("help.options"),
            "Commands": text("help.commands"),
        }
        self.write(" " * self.current_indent + text("help.heading", name=worded[heading]) + "\n")

    def write_text(self, text: str) -> None:
        indent = " " * self.current_indent
        for line in wrapped(text, self.width - self.current_indent):
            self.write(f"{indent}{line}\n")

    def write_dl(
        self, rows: Sequence[tuple[str, str]], col_max: int = _WIDEST_NAME, col_spacing: int = _GAP
    ) -> None:
        indent = " " * self.current_indent
        left = min(max(columns(name) for name, _ in rows), col_max) + col_spacing
        for name, words in rows:
            first, *more = wrapped(_worded(words), max(self.width - left - 2, 10)) or [""]
            if columns(name) > left - col_spacing:
                self.write(f"{indent}{name}\n{indent}{' ' * left}{first}\n")
            else:
                self.write(f"{indent}{padded(name, left)}{first}".rstrip() + "\n")
            for line in more:
                self.write(f"{indent}{' ' * left}{line}\n")


class _Context(typer.Context):
    formatter_class = _Page


def _worded(words: str) -> str:
    """``words`` of a row with what Typer itself has written in it."""
    if words == "Show this message and exit.":
        return text("help.help")
    found = _EXTRA.fullmatch(words)
    if found is None:
        return words
    extras = [_extra(one) for one in found["extra"].split("; ")]
    return "  ".join(filter(None, (found["words"], f"[{'; '.join(extras)}]")))


def _extra(words: str) -> str:
    if found := _DEFAULT.fullmatch(words):
        return text("help.default", default=found[1])
    return text("help.required") if words == "required" else words
