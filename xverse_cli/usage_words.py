"""What is wrong with a command line, in the language in use: Typer says it in English."""

from __future__ import annotations

import re
from collections.abc import Callable

from xverse_cli.messages import text


def usage_words(problem: str) -> str:
    """``problem``, as Typer words it, in our words; as it is where it is none of the usual ones."""
    for pattern, words in _KNOWN:
        if found := re.fullmatch(pattern, problem, re.DOTALL):
            return words(*(group.replace("'", "") if group else "" for group in found.groups()))
    return problem


def _no_such_option(option: str, nearest: str) -> str:
    return _perhaps(text("usage.no_such_option", option=option), nearest)


def _no_such_command(command: str, nearest: str) -> str:
    return _perhaps(text("usage.no_such_command", command=command), nearest)


def _perhaps(problem: str, nearest: str) -> str:
    return text("usage.perhaps", problem=problem, nearest=nearest) if nearest else problem


def _bad_value(name: str, quoted: str) -> str:
    return text("usage.bad_value", name=name, problem=quoted)


_KNOWN: tuple[tuple[str, Callable[..., str]], ...] = (
    (r"No such option: (.+?)(?: \(Possible options: (.+)\))?", _no_such_option),
    (r"No such command (.+?)\.(?: Did you mean (.+)\?)?", _no_such_command),
    (r"Missing argument (.+?)\.", lambda name: text("usage.missing_argument", name=name)),
    (r"Missing option (.+?)\.", lambda name: text("usage.missing_option", name=name)),
    (
        r"Got unexpected extra argument\(?s?\)? \((.+)\)",
        lambda arguments: text("usage.surplus", arguments=arguments),
    ),
    (
        r"Option (.+) requires an argument\.",
        lambda option: text("usage.needs_value", option=option),
    ),
    (
        r"Option (.+) does not take a value\.",
        lambda option: text("usage.takes_no_value", option=option),
    ),
    (r"Invalid value for ('.+?'(?: / '.+?')*): (.+)", _bad_value),
)
