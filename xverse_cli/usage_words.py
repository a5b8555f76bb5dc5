"""What is wrong with a command line, in the language in use: Typer says it in English."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from difflib import get_close_matches

from xverse_cli.messages import text

_MOST = 3  # guesses
_LIKENESS = 0.75  # of difflib
_NO_SUCH_OPTION = r"No such option: (\S+).*"


def usage_words(problem: str, options: Sequence[str] = ()) -> str:
    """``problem``, as Typer words it, in our words; as it is where it is none of the usual ones.

    Args:
        options: those of the command, with their dashes.
    """
    if found := re.fullmatch(_NO_SUCH_OPTION, problem):
        return _no_such_option(found[1], options)
    for pattern, words in _KNOWN:
        if found := re.fullmatch(pattern, problem, re.DOTALL):
            return words(*(group.replace("'", "") if group else "" for group in found.groups()))
    return problem


def _no_such_option(option: str, options: Sequence[str]) -> str:
    """Names what may have been meant: options that begin so, else those that differ by a letter or
    two. Typer counts the dashes as letters, by which all options are alike."""
    typed = option.lstrip("-")
    names = [name[2:] for name in options if name.startswith("--")]
    begun = [name for name in names if typed and name.startswith(typed)]
    nearest = begun or get_close_matches(typed, names, n=_MOST, cutoff=_LIKENESS)
    listed = text("list.separator").join(f"--{name}" for name in nearest[:_MOST])
    return _perhaps(text("usage.no_such_option", option=option), listed)


def _no_such_command(command: str, nearest: str) -> str:
    return _perhaps(text("usage.no_such_command", command=command), nearest)


def _perhaps(problem: str, nearest: str) -> str:
    return text("usage.perhaps", problem=problem, nearest=nearest) if nearest else problem


def _bad_value(name: str, quoted: str) -> str:
    return text("usage.bad_value", name=name, problem=quoted)


_KNOWN: tuple[tuple[str, Callable[..., str]], ...] = (
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
