"""Why something is so, in another language: the runtime, the downloads and the system say it in
English, as parameters of errors (``detail``, ``reason``, ``expected``)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache

_PROSE = re.compile(r"[A-Za-z]{2,} .*[A-Za-z]{2,}", re.DOTALL)


def reworded(english: str, table: Mapping[str, str]) -> str:
    """``english`` as ``table`` says it, or as it is where the table does not know it.

    Args:
        table: English to another language. ``{names}`` in both stand for what differs, which is
            reworded too.
    """
    if english in table:
        return table[english]
    for template, words in table.items():
        if "{" in template and (found := _pattern(template).fullmatch(english)):
            parts = {name: reworded(part, table) for name, part in found.groupdict().items()}
            return words.format(**parts)
    return english


def is_prose(words: str) -> bool:
    """Whether ``words`` are a phrase in English, and not a name, a path or a number."""
    return words.isascii() and _PROSE.search(words) is not None


@cache
def _pattern(template: str) -> re.Pattern[str]:
    pieces = re.split(r"\{(\w+)\}", template)
    pattern = "".join(
        f"(?P<{piece}>.*?)" if place % 2 else re.escape(piece) for place, piece in enumerate(pieces)
    )
    return re.compile(pattern, re.DOTALL)
