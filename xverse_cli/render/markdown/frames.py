"""The quotes and list items around a block: what stands before its rows, and before its source."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from xverse_cli.render.markdown.cells import upper_width
from xverse_cli.render.markdown.theme import Theme
from xverse_cli.render.markdown.wrap import Row, Span

_ITEM = re.compile(r"(?P<indent> *)(?P<marker>[-+*]|\d{1,9}[.)])(?P<space> *)(?P<rest>.*)")
_QUOTE = re.compile(r" {0,3}> ?")


@dataclass(frozen=True)
class Frame:
    """An open quote, or an open item of a list.

    Args:
        head: what stands before its first row; later ones have as many spaces, or the same bar.
        opening: the source that opens it, without what it contains.
        begun: its first row is out.
        ordinal: number of an item, as shown.
        sign: what distinguishes its list from another one right after it.
    """

    kind: str
    head: Row
    opening: str
    begun: bool = False
    ordinal: int = 0
    sign: str = ""

    @property
    def width(self) -> int:
        return sum(upper_width(span.text) for span in self.head)

    @property
    def before_source(self) -> str:
        """What a further line of the source begins with inside it."""
        return "> " if self.kind == "quote" else " " * len(self.opening)


def quote_frame(theme: Theme) -> Frame:
    """A quote; its bar stands before every row."""
    return Frame("quote", (Span(f"{theme.signs.bar} ", theme.look("quote")),), "> ")


def item_frame(head: str, line: str, ordinal: int, sign: str, theme: Theme) -> Frame:
    """A list item.

    Args:
        head: its bullet or number.
        line: where it begins, without what the frames around it put there.
    """
    match = _ITEM.match(line)
    assert match is not None, line
    space, rest = match["space"], match["rest"]
    if not 1 <= len(space) <= 4 or not rest:  # more spaces begin indented code
        space = " "
    opening = match["indent"] + match["marker"] + space
    return Frame(
        "item", (Span(f"{head} ", theme.look("marker")),), opening, ordinal=ordinal, sign=sign
    )


def begin(frames: Sequence[Frame]) -> list[Frame]:
    """The frames once a row of theirs is out."""
    return [one if one.begun else replace(one, begun=True) for one in frames]


def heads(frames: Sequence[Frame], room: int) -> Row:
    """What stands before the next row; the outermost give way where ``room`` is short."""
    shown = []
    for frame in frames[_given_way(frames, room) :]:
        blank = frame.kind == "item" and frame.begun
        shown.append((Span(" " * frame.width),) if blank else frame.head)
    return tuple(span for head in shown for span in head)


def without_room(frames: Sequence[Frame], room: int) -> list[Span]:
    """Bullets and numbers that are to be seen now, but give way in the row."""
    given_way = frames[: _given_way(frames, room)]
    return [span for one in given_way if one.kind == "item" and not one.begun for span in one.head]


def _given_way(frames: Sequence[Frame], room: int) -> int:
    """How many of the outermost frames are not shown; the innermost always is."""
    for number in range(len(frames) - 1, -1, -1):
        room -= frames[number].width
        if room < 0 and number < len(frames) - 1:
            return number + 1
    return 0


def openings(frames: Sequence[Frame]) -> list[str]:
    """Lines of source that open the frames anew; each holds an empty heading, to be passed over.

    A heading ends with its line and leaves whatever follows as it would be.
    """
    lines, before = [], ""
    for frame in frames:
        lines.append(f"{before}{frame.opening}#")
        before += frame.before_source
    return lines


def before_source(frames: Sequence[Frame]) -> str:
    """What a line of the source begins with inside all frames."""
    return "".join(frame.before_source for frame in frames)


def inside(line: str, frames: Sequence[Frame]) -> str:
    """``line`` without what the frames put before it."""
    for frame in frames:
        if frame.kind == "quote":
            match = _QUOTE.match(line)
            line = line[match.end() :] if match else line
        else:
            spaces = len(line) - len(line.lstrip(" "))
            line = line[min(spaces, len(frame.opening)) :]
    return line
