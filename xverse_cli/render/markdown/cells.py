"""What a text is made of on a terminal: pieces, their widths, and where lines may break between
them.

Widths are wcwidth's. Terminals disagree about sequences (flags, families, skin tones), so a line
is wrapped by the larger of the two ways to count, and no terminal ever wraps it once more.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

from wcwidth import iter_graphemes, wcswidth, wcwidth

from xverse_cli.render.breaking import (
    HAN,
    KINDS,
    MARK,
    SPACE,
    WORD,
    WORD_OPENER,
    keeps_together,
    within_word,
)

# Characters that attach themselves to the one before and change its width or its meaning.
_EXTENDING = (
    "\u0300-\u036f\u20d0-\u20f0\u200d\ufe00-\ufe0f\U0001f3fb-\U0001f3ff\U000e0020-\U000e007f"
)
_PIECES = re.compile(
    rf"(?P<space> +)|(?P<ascii>[!-~]+(?![{_EXTENDING}]))"
    rf"|(?P<han>[\u2e80-\u2fdf\u3001-\u303e\u3041-\u3096\u309b-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
    rf"\uf900-\ufaff\uff01-\uff60](?![{_EXTENDING}]))"
    r"|(?P<other>(?:[^ !-~\u3001-\u303e\u3041-\u3096\u3400-\u4dbf\u4e00-\u9fff\uff01-\uff60]"
    rf"|.(?=[{_EXTENDING}]))+)|(?P<rest>.)",
    re.DOTALL,
)
_HYPHEN = re.compile(r"(?<=[A-Za-z]-)(?=[A-Za-z])")
_HYPHENATED = re.compile(r"[(\"']*[A-Za-z]+(-[A-Za-z]+)+[,.;:!?)\"']*\Z")
_UNCERTAIN = re.compile("[\u200d\ufe0e\ufe0f\u20e3\U0001f1e6-\U0001f1ff\U0001f3fb-\U0001f3ff]")
_SIMPLE = re.compile("[ -~\u3001-\u303e\u4e00-\u9fff\uff01-\uff60]*\\Z")


class Piece(NamedTuple):
    """A part of a line that is not broken, but where it is longer than a line.

    Args:
        width: in columns, the larger of what terminals make of it.
        first: kind of the first character, for a break before.
        last: kind of the last one, for a break after.
    """

    text: str
    width: int
    first: int
    last: int
    sgr: str = ""
    href: str = ""


def pieces(text: str, sgr: str = "", href: str = "") -> Iterator[Piece]:
    """Cut ``text``, which holds no line breaks, into pieces."""
    for match in _PIECES.finditer(text):
        kind, part = match.lastgroup, match.group()
        if kind == "han":
            what = KINDS.get(part, HAN)
            yield Piece(part, 2, what, what, sgr, href)
        elif kind == "space":
            yield Piece(part, len(part), SPACE, SPACE, sgr, href)
        elif kind == "ascii":
            for word in _HYPHEN.split(part) if _HYPHENATED.match(part) else (part,):
                yield Piece(word, len(word), _word_kind(word[0]), _word_kind(word[-1]), sgr, href)
        else:
            for cluster in iter_graphemes(part):
                width, what = _measure(cluster)
                yield Piece(cluster, width, what, what, sgr, href)


def may_break(before: Piece, after: Piece) -> bool:
    """Whether a line may end between two neighbours, neither of which is a space."""
    last, first = before.last, after.first
    if keeps_together(last, first):
        return False
    if first == WORD_OPENER and not after.text[0].isascii():
        return True
    if within_word(last, first):
        return before.text[-1] == "-" and before.text[-2:-1].isalpha() and after.text[0].isalpha()
    return True


def width_of(text: str) -> int:
    """Columns of ``text`` on a terminal that knows sequences, for filling up to a column."""
    if text.isascii():
        return len(text)
    return max(0, wcswidth(text))


def upper_width(text: str) -> int:
    """Columns of ``text`` on the terminal that takes most for it."""
    if text.isascii():
        return len(text)
    if _SIMPLE.match(text):
        return len(text) + sum(character > "~" for character in text)
    return sum(piece.width for piece in pieces(text))


def uncertain(text: str) -> bool:
    """Whether terminals disagree about the width of ``text``."""
    return not text.isascii() and _UNCERTAIN.search(text) is not None


def cut_to_width(text: str, width: int) -> int:
    """How many characters of ``text`` fit into ``width`` columns; at least one cluster."""
    if text.isascii():
        return max(1, width)
    taken = used = 0
    for cluster in iter_graphemes(text):
        used += _measure(cluster)[0]
        if taken and used > width:
            break
        taken += len(cluster)
    return taken


def is_wide(character: str) -> bool:
    """Whether ``character`` is Han, kana or their punctuation: text without spaces."""
    return (
        "\u2e80" <= character <= "\ua4cf"
        or "\uf900" <= character <= "\uff60"
        or (character >= "\U00020000" and wcwidth(character) == 2)
    )


@lru_cache(4096)
def _measure(cluster: str) -> tuple[int, int]:
    """Columns and kind of one cluster."""
    single = sum(max(0, wcwidth(character)) for character in cluster)
    width = max(single, wcswidth(cluster))
    if width == 0:
        return 0, MARK
    what = KINDS.get(cluster[0])
    if what is None:
        hangul = "\uac00" <= cluster[0] <= "\ud7a3" or "\u1100" <= cluster[0] <= "\u11ff"
        what = HAN if width > 1 and not hangul else WORD
    return width, what


def _word_kind(character: str) -> int:
    return KINDS.get(character, WORD)
