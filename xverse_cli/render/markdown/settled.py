"""How much of a growing paragraph can no longer change its meaning.

A scan of the source that knows what opens and what closes. It only has to be careful: where it
sees an opening that the parser would not, a line is let go later, and nothing else.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from wcwidth import wcwidth

from xverse_cli.render.markdown.parser import CUT, MOST_MATHS, flanks, match_maths

_SPECIAL = re.compile(r"[\\`*_~\[\]<&$]")
_AUTOLINK = re.compile(r"<[A-Za-z][A-Za-z0-9+.-]{1,31}:[^\s<>]*>|<[^\s<>@]+@[^\s<>]+>")
_UNFINISHED_AUTOLINK = re.compile(r"<[^\s<>]*\Z")
_ENTITY = re.compile(r"&(?:#[xX]?)?[A-Za-z0-9]{1,32};")
_UNFINISHED_ENTITY = re.compile(r"&#?[A-Za-z0-9]{0,32}\Z")
_BACKTICKS = re.compile(r"(`+)[^`]*[^`\s][^`]*\Z")
_JOINERS = "\u200d"
_MOST_SIGNS = 120  # among more of them without a place to cut, what is open is text


def settled(source: str, limit: int | None = None) -> int:
    """The last place before ``limit`` where ``source`` may be cut for good; 0 when there is none.

    Both sides mean the same apart as together, whatever follows ``source``. The characters around
    the place take part in no syntax.
    """
    limit = len(source) if limit is None else limit
    scan = _Scan(source)
    position = len(CUT) + 1 if source.startswith(CUT) else 0
    for _ in range(_MOST_SIGNS):
        if position >= limit:
            break
        match = _SPECIAL.search(source, position)
        end = min(match.start() if match else limit, limit)
        if not scan.waiting:
            scan.note(position, end)
        if match is None or end == limit:
            break
        position = scan.step(end)
        if position < 0:
            break
    else:
        return scan.place or anywhere(source[:position])
    return scan.place


def anywhere(source: str) -> int:
    """The last place where ``source`` may be cut if it must be, whatever is open; 0 if none."""
    first = len(CUT) + 2 if source.startswith(CUT) else 1
    places = [place for place in range(first, len(source)) if _apart(source, place)]
    quiet = [place for place in places if not _SPECIAL.match(source[place - 1])]
    return (quiet or places or [0])[-1]


def as_if_closed(source: str) -> tuple[str, str]:
    """``source`` with what is open in it closed, for showing it before it is; and what opens that.

    Signs at the very end are left out: most likely they go on.
    """
    shown = source.rstrip()
    shown = shown.rstrip("*_~`") if shown == source and source[-2:-1] != "\\" else shown
    scan = _Scan(shown)
    position = len(CUT) + 1 if shown.startswith(CUT) else 0
    code = ""
    while match := _SPECIAL.search(shown, position):
        position = scan.step(match.start())
        if position < 0:
            run = _BACKTICKS.match(shown, match.start())
            code = run[1] if run else ""
            break
    opened = [one.sign * one.count for one in scan.waiting if one.sign != "[" and one.count <= 3]
    closed = "".join(reversed(opened))
    return shown + code + closed + source[len(source.rstrip()) :], "".join(opened) + code


def _apart(source: str, place: int) -> bool:
    """Whether a cut at ``place`` leaves characters, escapes and line ends whole."""
    before, after = source[place - 1], source[place]
    return (
        not before.isspace()
        and before not in "\\!" + _JOINERS
        and wcwidth(after) != 0
        and not 0x1F3FB <= ord(after) <= 0x1F3FF
        and not (_is_regional(before) and _is_regional(after))
    )


def _is_regional(character: str) -> bool:
    return "\U0001f1e6" <= character <= "\U0001f1ff"


@dataclass
class _Open:
    """A bracket or delimiters that may be closed: which, how many, and whether they close too."""

    sign: str
    count: int = 1
    closes: bool = False


class _Scan:
    """Goes from sign to sign.

    Attributes:
        place: the last place for a cut.
        waiting: what is open.
    """

    def __init__(self, source: str) -> None:
        self.source = source
        self.place = 0
        self.waiting: list[_Open] = []

    def note(self, start: int, end: int) -> None:
        """``source[start:end]`` is plain text outside everything."""
        # Not right after a delimiter: whether that one closes depends on its other neighbour.
        for place in range(min(end, len(self.source) - 1), max(start, self.place), -1):
            if place - 1 >= start and place < end and _apart(self.source, place):
                self.place = place
                return

    def step(self, at: int) -> int:
        """Go past the special character at ``at``; -1 when the rest is open."""
        source = self.source
        character = source[at]
        if character == "\\":
            end = match_maths(source, at)
            if end > at:
                return end
            if source.startswith(("\\(", "\\["), at) and len(source) - at <= MOST_MATHS + 4:
                return -1
            return at + 2
        if character == "`":
            return self._code(at)
        if character == "$":
            end = match_maths(source, at)
            if end > at:
                # A closing dollar at the very end may yet be followed by a digit.
                return -1 if end == len(source) else end
            return -1 if len(source) - at <= MOST_MATHS + 4 and self._may_be_maths(at) else at + 1
        if character == "<":
            match = _AUTOLINK.match(source, at)
            if match:
                return match.end()
            return -1 if _UNFINISHED_AUTOLINK.match(source, at) else at + 1
        if character == "&":
            match = _ENTITY.match(source, at)
            if match:
                return match.end()
            return -1 if _UNFINISHED_ENTITY.match(source, at) else at + 1
        if character in "[]":
            return self._bracket(at)
        return self._delimiters(at)

    def _may_be_maths(self, at: int) -> bool:
        following = self.source[at + 1 : at + 2]
        if following == "$":
            return True
        return not following.isspace() and "\n" not in self.source[at:]

    def _code(self, at: int) -> int:
        source = self.source
        end = at
        while end < len(source) and source[end] == "`":
            end += 1
        if end == len(source):
            return -1
        closing = re.compile(rf"(?<!`)`{{{end - at}}}(?!`)").search(source, end)
        if closing is None or closing.end() == len(source):
            return -1  # a run of backticks at the end may still grow
        return closing.end()

    def _bracket(self, at: int) -> int:
        source = self.source
        if source[at] == "[":
            self.waiting.append(_Open("["))
            return at + 1
        if at + 1 == len(source):
            return -1
        opened = [index for index, one in enumerate(self.waiting) if one.sign == "["]
        if not opened:
            return at + 1
        if source[at + 1] == "(":
            closing = _closing_parenthesis(source, at + 1)
            if closing < 0:
                return -1
            del self.waiting[opened[-1] :]
            return closing + 1
        del self.waiting[opened[-1]]
        return at + 1

    def _delimiters(self, at: int) -> int:
        source, character = self.source, self.source[at]
        end = at
        while end < len(source) and source[end] == character:
            end += 1
        if end == len(source):
            return -1
        count = end - at
        opens, closes = flanks(source, at, end, splits_words=character != "_")
        if character == "~" and count < 2:
            return end
        if closes:
            count = self._close(character, count, opens)
        if count and opens:
            self.waiting.append(_Open(character, count, closes))
        return end

    def _close(self, character: str, count: int, opens: bool) -> int:
        """Match ``count`` closing delimiters with what is open; how many are left."""
        for index in range(len(self.waiting) - 1, -1, -1):
            if not count:
                break
            one = self.waiting[index]
            if one.sign == "[":
                break  # delimiters pair inside a link text, if it is one
            if one.sign != character:
                continue
            threes = (one.count + count) % 3 == 0 and (one.count % 3 or count % 3)
            if (one.closes or opens) and threes:
                continue
            used = min(one.count, count)
            count -= used
            one.count -= used
            del self.waiting[index + 1 if one.count else index :]
        return count


def _closing_parenthesis(source: str, at: int) -> int:
    """Where the parenthesis at ``at`` is closed; -1 when it is not."""
    depth = 0
    position = at
    while position < len(source):
        character = source[position]
        if character == "\\":
            position += 1
        elif character == "(":
            depth += 1
        elif character == ")":
            depth -= 1
            if depth == 0:
                return position
        position += 1
    return -1
