"""The catalogue: every text that users read, looked up by key and filled with parameters.

A language is one module here with the tables ``TEXTS`` (key to text), ``ERRORS`` (error code to
message and hint) and ``DETAILS`` (see `details`). Only the language in use is imported. Texts are
formatted by ``str.format``; a parameter that a text does not get shows as ``?`` rather than failing
while an error is being reported.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from xverse_cli.render.sanitize import sanitize
from xverse_runtime.errors import XverseError

LANGUAGES = ("en", "zh")
_MOST_ITEMS = 20
_DETAILS = ("detail", "reason", "expected")  # parameters that others word

_language = "en"


def use(language: str) -> None:
    """Word everything in ``language`` from now on; English where there is no such catalogue."""
    global _language
    _language = language if language in LANGUAGES else "en"


@contextmanager
def worded_in(language: str) -> Iterator[None]:
    """Word what is made meanwhile in ``language``: what programs read is English everywhere."""
    before = _language
    use(language)
    try:
        yield
    finally:
        use(before)


def text(key: str, **params: object) -> str:
    """The text of ``key`` in the language in use."""
    template: str = _catalogue().TEXTS[key]
    return _fill(template, params) if params else template


def error_text(error: XverseError) -> tuple[str, str]:
    """Message and hint of an error; the hint may be empty, an unknown code is shown as it is."""
    entry = _catalogue().ERRORS.get(error.code)
    if entry is None:
        return sanitize(str(error)), ""
    message, hint = entry
    return _fill(message, error.params), _fill(hint, error.params)


def _catalogue() -> Any:
    return importlib.import_module(f"xverse_cli.messages.{_language}")


def detail(english: str) -> str:
    """What the runtime, a library or the system says in English, in the language in use; what it
    has no words for is told to be a quotation."""
    table = _catalogue().DETAILS
    if not table:
        return english
    from xverse_cli.messages.details import is_prose, reworded

    words = reworded(english, table)
    return text("detail.original", words=words) if words == english and is_prose(words) else words


class _Printable(dict[str, str]):
    def __missing__(self, key: str) -> str:
        return "?"


def _fill(template: str, params: Mapping[str, object]) -> str:
    printable = _Printable({key: _worded(key, value) for key, value in params.items()})
    return template.format_map(printable)


def _worded(key: str, value: object) -> str:
    if key.endswith("_bytes") and isinstance(value, (int, float)):
        return size(value)
    if key.endswith("_bytes") and value is None:
        return text("size.unknown")
    if isinstance(value, str):
        return sanitize(detail(value) if key in _DETAILS else value)
    if isinstance(value, Iterable) and not isinstance(value, (bytes, Mapping)):
        items = [sanitize(str(item)) for item in value]
        more = len(items) - _MOST_ITEMS
        listed = text("list.separator").join(items[:_MOST_ITEMS])
        return listed + text("list.more", count=more) if more > 0 else listed or text("list.none")
    return sanitize(str(value))


def figure(value: float, digits: int = 3) -> str:
    """A measured or predicted number with the ``digits`` that count: ``0.751``, ``5620``."""
    return f"{float(f'{value:.{digits}g}'):.10g}"


def size(count: float) -> str:
    """A number of bytes for people: ``7.5 GiB``."""
    if abs(count) < 1024:
        return text("size.bytes", count=f"{count:.0f}")
    for unit in ("KiB", "MiB"):
        count /= 1024
        if abs(count) < 1024:
            return f"{count:.1f} {unit}"
    count /= 1024
    return f"{count:.1f} GiB"
