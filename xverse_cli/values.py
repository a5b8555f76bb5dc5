"""Readers of single values: from the command line and the environment as text, from TOML typed.

Each one returns the value or raises `ValueError` with what was expected, worded for users.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable

from xverse_cli.messages import text

Reader = Callable[[object], object]


def number(
    minimum: float, maximum: float = math.inf, *, above_minimum: bool = False
) -> Callable[[object], float]:
    """A finite number from ``minimum`` (or above it) to ``maximum``."""

    def read(value: object) -> float:
        expected = _range_text("number", minimum, maximum, above_minimum)
        if isinstance(value, bool) or not isinstance(value, (str, int, float)):
            raise ValueError(expected)
        try:
            result = float(value)
        except (ValueError, OverflowError):
            raise ValueError(expected) from None
        too_low = result <= minimum if above_minimum else result < minimum
        if not math.isfinite(result) or too_low or result > maximum:
            raise ValueError(expected)
        return result

    return read


def integer(minimum: int, maximum: int = 2**63 - 1) -> Callable[[object], int]:
    """A whole number from ``minimum`` to ``maximum``."""

    def read(value: object) -> int:
        expected = _range_text("integer", minimum, math.inf if maximum == 2**63 - 1 else maximum)
        if isinstance(value, bool) or not isinstance(value, (str, int)):
            raise ValueError(expected)
        try:
            result = int(value)
        except ValueError:
            raise ValueError(expected) from None
        if not minimum <= result <= maximum:
            raise ValueError(expected)
        return result

    return read


def choice(*names: str) -> Callable[[object], str]:
    """One of ``names``, in either case."""

    def read(value: object) -> str:
        if isinstance(value, str) and value.strip().lower() in names:
            return value.strip().lower()
        raise ValueError(text("expected.choice", choices=names))

    return read


def words(value: object) -> str:
    """A text that is not empty."""
    if isinstance(value, str) and value:
        return value
    raise ValueError(text("expected.text"))


def model_name(value: object) -> str:
    """What a model is called; the address of its page becomes its Hub id."""
    from xverse_cli.models.names import hub_id

    return hub_id(words(value))


def switch(value: object) -> bool:
    """On or off, as environment variables spell it."""
    return str(value).strip().lower() not in ("", "0", "false", "no", "off")


def on_off(value: object) -> bool:
    """On or off, and nothing else."""
    word = str(value).strip().lower()
    if word in ("1", "true", "yes", "on"):
        return True
    if word in ("0", "false", "no", "off"):
        return False
    raise ValueError(text("expected.choice", choices="on, off"))


_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?", re.IGNORECASE)
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


def byte_count(value: object) -> int:
    """An amount of memory: ``6GiB``, ``7.5 GB``, ``6g`` (GiB, as programs count memory), or bytes.

    ``GB`` is 1000 to the third power, ``GiB`` and ``G`` 1024.
    """
    expected = text("expected.bytes")
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise ValueError(expected)
    found = _SIZE.fullmatch(str(value).strip())
    if found is None:
        raise ValueError(expected)
    number_, prefix, binary = found.groups()
    decimal = prefix and not binary and str(value).strip().lower().endswith("b")
    result = int(float(number_) * (1000 if decimal else 1024) ** _POWERS[prefix.lower()])
    if not 0 < result < 2**63:
        raise ValueError(expected)
    return result


_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\"}


def unescape(value: object) -> str:
    r"""A text in which ``\n``, ``\t``, ``\r`` and ``\\`` are escapes; other backslashes stand."""
    source = words(value)
    result, position = [], 0
    while position < len(source):
        pair = source[position : position + 2]
        if len(pair) == 2 and pair[0] == "\\" and pair[1] in _ESCAPES:
            result.append(_ESCAPES[pair[1]])
            position += 2
        else:
            result.append(source[position])
            position += 1
    return "".join(result)


def _range_text(kind: str, minimum: float, maximum: float, above: bool = False) -> str:
    if math.isfinite(maximum):
        key = f"expected.{kind}_above_to" if above else f"expected.{kind}_from_to"
        return text(key, minimum=minimum, maximum=maximum)
    key = f"expected.{kind}_above" if above else f"expected.{kind}_from"
    return text(key, minimum=minimum)
