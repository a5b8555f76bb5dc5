"""Puts rows on a terminal: finished ones once, the tail again wherever it has changed.

The painter knows which rows stand on the screen from the last finished one on, and where the
cursor is: behind the last of them. A frame that only adds text is written as that text. Any other
goes back to the first difference and writes on from there, as one synchronised update (DEC mode
2026).
"""

from __future__ import annotations

from collections.abc import Sequence

from xverse_cli.render.markdown.cells import uncertain
from xverse_cli.render.markdown.wrap import Row, row_width

_BEGIN, _END = "\x1b[?2026h", "\x1b[?2026l"
_JOINING = frozenset("\u200d\ufe0e\ufe0f\u20e3")


class Painter:
    """Turns rows into what is to be written; the cursor starts in the first column."""

    def __init__(self) -> None:
        self._painted: list[Row] = []
        self._final = 0  # how many of them will never change: at most one

    @property
    def tail(self) -> list[Row]:
        """The rows on the screen that are not final."""
        return self._painted[self._final :]

    def frame(self, finished: Sequence[Row], tail: Sequence[Row]) -> str:
        """What brings the screen to show ``finished`` after all before, and ``tail`` after them."""
        old = self._painted
        new = [*old[: self._final], *finished, *tail]
        first = 0
        while first < min(len(old), len(new)) and old[first] == new[first]:
            first += 1
        written = self._difference(old, new, first)
        count = self._final + len(finished)
        self._final = min(1, count)
        self._painted = new[count - self._final :]
        return written

    def close(self) -> str:
        """The cursor to the beginning of the line after the last."""
        written = "\n" if self._painted else ""
        self._painted, self._final = [], 0
        return written

    def _difference(self, old: list[Row], new: list[Row], first: int) -> str:
        if first == len(old):
            return _lines(new[first:], after=bool(old))
        kept, rest = _common(old[first], new[first]) if first < len(new) else ((), ())
        if first == len(old) - 1 and first < len(new) and kept == old[first]:
            return _encode(rest) + _lines(new[first + 1 :], after=True)
        parts = [_BEGIN]
        up = len(old) - 1 - first
        parts.append(f"\x1b[{up}A\r" if up else "\r")
        if first == len(new):  # rows disappear, and none takes their place
            parts.append("\x1b[J")
            if new:
                parts.append("\x1b[A" if first <= self._final else f"\x1b[A\r{_encode(new[-1])}")
            return "".join([*parts, _END])
        if any(uncertain(span.text) for span in kept):  # terminals disagree on its column
            kept, rest = (), new[first]
        column = row_width(kept)
        if column:
            parts.append(f"\x1b[{column}C")
        parts += ["\x1b[J", _encode(rest), _lines(new[first + 1 :], after=True), _END]
        return "".join(parts)


def plain_rows(rows: Sequence[Row]) -> str:
    """Rows for where nothing can be written again: each a line with its end."""
    return "".join(_encode(row) + "\n" for row in rows)


def _lines(rows: Sequence[Row], *, after: bool) -> str:
    """Rows, each on a line of its own; ``after`` something else."""
    text = "\n".join(map(_encode, rows))
    return f"\n{text}" if rows and after else text


def _encode(row: Row) -> str:
    parts: list[str] = []
    for text, sgr, href in row:
        part = f"\x1b[{sgr}m{text}\x1b[m" if sgr else text
        parts.append(f"\x1b]8;;{href}\x1b\\{part}\x1b]8;;\x1b\\" if href else part)
    return "".join(parts)


def _common(old: Row, new: Row) -> tuple[Row, Row]:
    """What two rows begin with alike, and what ``new`` goes on with."""
    at = 0
    while at < min(len(old), len(new)) and old[at] == new[at]:
        at += 1
    if at == len(old) or at == len(new):
        kept, rest = new[:at], new[at:]
        if rest and _joins(rest[0].text):
            return _without_last(kept, new)
        return kept, rest
    before, after = old[at], new[at]
    length = 0
    if before[1:] == after[1:]:
        shorter = min(len(before.text), len(after.text))
        while length < shorter and before.text[length] == after.text[length]:
            length += 1
        while length and (
            _joins(after.text[length:])
            or _joins(before.text[length:])
            or after.text[length - 1] in _JOINING
        ):
            length -= 1
    if not length:
        return new[:at], new[at:]
    return (
        (*new[:at], after._replace(text=after.text[:length])),
        (
            *((after._replace(text=after.text[length:]),) if after.text[length:] else ()),
            *new[at + 1 :],
        ),
    )


def _joins(text: str) -> bool:
    """Whether ``text`` begins with what attaches itself to the character before."""
    if not text or text[0].isascii():
        return False
    from wcwidth import wcwidth

    return (
        wcwidth(text[0]) == 0
        or 0x1F3FB <= ord(text[0]) <= 0x1F3FF
        or "\U0001f1e6" <= text[0] <= "\U0001f1ff"
    )


def _without_last(kept: Row, new: Row) -> tuple[Row, Row]:
    return kept[:-1], new[max(0, len(kept) - 1) :]
