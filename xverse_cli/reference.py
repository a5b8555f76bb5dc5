"""The tables of docs/cli.md and docs/chat.md, made from the code:
`python -m xverse_cli.reference docs/cli.md docs/chat.md`."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import typer

from xverse_cli import exit_codes, settings
from xverse_cli.app import build_app
from xverse_cli.chat.commands import COMMANDS, key_rows
from xverse_cli.messages import text

_BLOCK = re.compile(r"(<!-- begin (?P<name>[\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)

_EXIT_CODES = {
    exit_codes.DONE: "exit.done",
    exit_codes.ERROR: "exit.error",
    exit_codes.USAGE: "exit.usage",
    exit_codes.MODEL_MISSING: "exit.model_missing",
    exit_codes.INTEGRITY: "exit.integrity",
    exit_codes.RESOURCES: "exit.resources",
    exit_codes.CONTEXT_OVERFLOW: "exit.context_overflow",
    exit_codes.PARTLY_FAILED: "exit.partly_failed",
    exit_codes.INTERRUPTED: "exit.interrupted",
}
_OTHER_VARIABLES = {
    settings.CONFIG_VARIABLE: "variable.config",
    settings.LANGUAGE_VARIABLE: "variable.lang",
    settings.DEBUG_VARIABLE: "variable.debug",
}
_NOT_THE_MODELS = ("threads", "markdown", "system", "seed", "save")


def update(document: str) -> str:
    """``document`` with every generated block brought up to date."""
    return _BLOCK.sub(lambda block: block[1] + _BLOCKS[block["name"]]() + block[3], document)


def _options(command: str) -> str:
    found: Any = typer.main.get_command(build_app())
    for name in command.split():
        found = found.commands[name]
    rows = [
        (_code(_spelling(parameter)), parameter.help)
        for parameter in found.params
        if parameter.name != "help"
    ]
    return _table("reference.option", "reference.meaning", rows=rows)


def _spelling(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return str(parameter.metavar)
    # The long name first, whatever the order in the declaration.
    names = ", ".join([*sorted(parameter.opts, key=len, reverse=True), *parameter.secondary_opts])
    return f"{names} {parameter.metavar}" if parameter.metavar else names


def _settings() -> str:
    rows = [
        (_code(key), _code(settings.variable(key)), _default(key), text(f"help.{key}"))
        for key in settings.SETTINGS
    ]
    headings = ("key", "variable", "default", "meaning")
    return _table(*[f"reference.{heading}" for heading in headings], rows=rows)


def _default(key: str) -> str:
    if value := getattr(settings.Settings(), key):
        return _code(value)
    return "–" if key in _NOT_THE_MODELS else text("reference.of_the_model")


def _variables() -> str:
    rows = [(_code(name), text(key)) for name, key in _OTHER_VARIABLES.items()]
    return _table("reference.variable", "reference.meaning", rows=rows)


def _codes() -> str:
    rows = [(str(code), text(key)) for code, key in _EXIT_CODES.items()]
    return _table("reference.code", "reference.meaning", rows=rows)


def _commands() -> str:
    rows = [(_code(command.usage), text(command.help)) for command in COMMANDS]
    return _table("reference.command", "reference.meaning", rows=rows)


def _keys() -> str:
    return _table("reference.key", "reference.meaning", rows=key_rows())


_BLOCKS: dict[str, Callable[[], str]] = {
    "generate-options": lambda: _options("generate"),
    "chat-options": lambda: _options("chat"),
    "pull-options": lambda: _options("pull"),
    "list-options": lambda: _options("list"),
    "show-options": lambda: _options("show"),
    "rm-options": lambda: _options("rm"),
    "convert-options": lambda: _options("convert"),
    "verify-options": lambda: _options("verify"),
    "bench-options": lambda: _options("bench"),
    "doctor-options": lambda: _options("doctor"),
    "sessions-list-options": lambda: _options("sessions list"),
    "sessions-export-options": lambda: _options("sessions export"),
    "sessions-rm-options": lambda: _options("sessions rm"),
    "settings": _settings,
    "variables": _variables,
    "exit-codes": _codes,
    "slash-commands": _commands,
    "keys": _keys,
}


def _code(value: object) -> str:
    return f"`{value}`"


def _table(*headings: str, rows: Iterable[tuple[str, ...]]) -> str:
    lines = [tuple(text(heading) for heading in headings), ("---",) * len(headings), *rows]
    return "".join("| " + " | ".join(cells).replace("\n", " ") + " |\n" for cells in lines)


if __name__ == "__main__":
    for target in map(Path, sys.argv[1:]):
        target.write_text(update(target.read_text(encoding="utf-8")), encoding="utf-8")
