"""Takes out of a text whatever would steer a terminal: model output is data, never commands."""

from __future__ import annotations

import re
from collections.abc import Iterator

# C0 but newline and tab, DEL, C1, bidirectional embeddings, overrides and isolates, surrogates.
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u202a-\u202e\u2066-\u2069\ud800-\udfff]")

# Where characters without width are found; everything else is known to have one.
_MAYBE_MARK = re.compile(
    "[^\x00-\u02ff\u2e80-\u3029\u3030-\u3098\u309b-\u3163\u3165-\ua66e\uac00-\ud7a3\uff00-\uff9f\uffa1-\uffdc]"
)
_MOST_MARKS = 16  # in a row: a flag of a region has 7

_TEXT, _ESCAPE, _CSI, _STRING, _STRING_ESCAPE = range(5)
_STRING_INTRODUCERS = {"P", "X", "]", "^", "_", "\x90", "\x98", "\x9d", "\x9e", "\x9f"}


class Sanitizer:
    """Removes control characters and whole escape sequences, also when chunks split them.

    A control string that never ends (an operating system command, say) is given up at the end of
    its line, so that it cannot swallow the rest of a reply. Of a flood of characters without width
    only the first are kept.
    """

    def __init__(self) -> None:
        self._state = _TEXT
        self._marks = 0  # characters without width at the end so far

    def feed(self, chunk: str) -> str:
        """The safe part of ``chunk``."""
        if self._state != _TEXT or _UNSAFE.search(chunk):
            chunk = "".join([kept for character in chunk if (kept := self._step(character))])
        if not _MAYBE_MARK.search(chunk):
            self._marks = 0 if chunk else self._marks
            return chunk
        return "".join(self._without_floods(chunk))

    def _without_floods(self, chunk: str) -> Iterator[str]:
        from wcwidth import wcwidth  # help and errors need none of it

        for character in chunk:
            without_width = character >= "\u0300" and wcwidth(character) == 0
            self._marks = self._marks + 1 if without_width else 0
            if self._marks <= _MOST_MARKS:
                yield character

    def _step(self, character: str) -> str:
        if self._state == _STRING:
            return self._in_string(character)
        if self._state == _STRING_ESCAPE:
            self._state = _TEXT
            return "" if character == "\\" else self._after_escape(character)
        if self._state == _ESCAPE:
            return self._after_escape(character)
        if self._state == _CSI:
            return self._in_csi(character)
        return self._in_text(character)

    def _in_text(self, character: str) -> str:
        self._state = _TEXT
        if not _UNSAFE.match(character):
            return character
        if character == "\x1b":
            self._state = _ESCAPE
        elif character == "\x9b":
            self._state = _CSI
        elif character in _STRING_INTRODUCERS:
            self._state = _STRING
        elif "\ud800" <= character <= "\udfff":
            return "\ufffd"
        return ""

    def _after_escape(self, character: str) -> str:
        if character == "[":
            self._state = _CSI
        elif character in _STRING_INTRODUCERS:
            self._state = _STRING
        elif " " <= character <= "/":  # intermediate bytes: the sequence goes on
            self._state = _ESCAPE
        elif "0" <= character <= "~":
            self._state = _TEXT
        else:
            return self._in_text(character)
        return ""

    def _in_csi(self, character: str) -> str:
        if " " <= character <= "?":
            return ""
        if "@" <= character <= "~":
            self._state = _TEXT
            return ""
        return self._in_text(character)

    def _in_string(self, character: str) -> str:
        if character == "\n":
            self._state = _TEXT
            return character
        if character == "\x1b":
            self._state = _STRING_ESCAPE
        elif character in ("\x07", "\x9c", "\x18", "\x1a"):
            self._state = _TEXT
        return ""


def sanitize(text: str) -> str:
    """A whole text made safe for a terminal."""
    return Sanitizer().feed(text)
