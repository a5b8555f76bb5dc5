"""The inline tokens of a paragraph as spans: looks, links, and what becomes of line ends."""

from __future__ import annotations

import re
from collections.abc import Sequence
from urllib.parse import urlsplit

from markdown_it.token import Token

from xverse_cli.render.markdown.cells import is_wide
from xverse_cli.render.markdown.parser import CUT
from xverse_cli.render.markdown.theme import Theme, joined
from xverse_cli.render.markdown.wrap import Span

NEWLINE = "\n"
_SOFT = "\x02"  # a line end of the source, until its neighbours are known
_BREAK = re.compile(" *<br ?/?> *", re.IGNORECASE)
_LOOKS = {"em_open": "em", "strong_open": "strong", "s_open": "s"}
_CLOSING = frozenset(("em_close", "strong_close", "s_close"))
_SAFE_TARGET = re.compile(r"https?://[!-~]{1,2048}\Z")
_STEERING = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_ADDRESS = re.compile(r"(https?://|www\.)|^[\w-]+(\.[\w-]+)*\.[a-z]{2,}(/|\Z)", re.IGNORECASE)


def spans_of(
    tokens: Sequence[Token], theme: Theme, look: str = "", *, in_cell: bool = False
) -> list[Span]:
    """Inline tokens as spans; a span of a line feed is a line break.

    A text that begins with `CUT` and one more character goes on after that character, which is on
    the screen already.

    Args:
        look: of all of them.
        in_cell: ``<br>`` breaks the line, which nothing else can in the cell of a table.
    """
    flat = _Flattener(theme, look, in_cell)
    for token in tokens:
        flat.add(token)
    return _joined_lines(flat.spans)


class _Flattener:
    def __init__(self, theme: Theme, look: str, in_cell: bool) -> None:
        self.spans: list[Span] = []
        self._theme = theme
        self._in_cell = in_cell
        self._looks = [look]
        self._links: list[tuple[str, int, bool]] = []  # target, first span, whether it is clickable

    def add(self, token: Token) -> None:
        kind = token.type
        if kind in ("text", "text_special"):
            self._put_text(token.content)
        elif kind == "softbreak":
            self.spans.append(self._span(_SOFT))
        elif kind == "hardbreak":
            self.spans.append(Span(NEWLINE))
        elif kind == "code_inline":
            self._put_code(token.content)
        elif kind == "maths":
            self._put_lines(token.content, "maths")
        elif kind in _LOOKS:
            self._looks.append(self._with(_LOOKS[kind]))
        elif kind in _CLOSING:
            self._looks.pop()
        elif kind == "link_open":
            self._open_link(str(token.attrs.get("href", "")))
        elif kind == "link_close":
            self._close_link()
        elif kind == "image":
            self._open_link(str(token.attrs.get("src", "")))
            self._put("".join(_plain_text(token.children or ())) or "image")
            self._close_link()

    def _with(self, name: str) -> str:
        return joined(self._looks[-1], self._theme.look(name))

    def _put_text(self, text: str) -> None:
        if text.startswith(CUT) and not self.spans:
            self.spans.append(Span(text[:2]))  # seen already; tells what stands before
            text = text[2:]
        for index, line in enumerate(_BREAK.split(text) if self._in_cell else [text]):
            if index:
                self.spans.append(Span(NEWLINE))
            self._put(line)

    def _put(self, text: str, look: str | None = None) -> None:
        # Entities and encoded addresses have been decoded since the text was sanitised.
        if text := _STEERING.sub(_harmless, text):
            self.spans.append(self._span(text, look))

    def _span(self, text: str, look: str | None = None) -> Span:
        target, _, clickable = self._links[-1] if self._links else ("", 0, False)
        return Span(text, self._looks[-1] if look is None else look, target if clickable else "")

    def _put_code(self, code: str) -> None:
        if self._theme.styled:
            self._put(code, self._with("code"))
        else:
            mark = "``" if "`" in code else "`"
            self._put(mark + code + mark)

    def _put_lines(self, text: str, name: str) -> None:
        for index, line in enumerate(text.split("\n")):
            if index:
                self.spans.append(Span(NEWLINE))
            self._put(line.strip() if index else line, self._with(name))

    def _open_link(self, target: str) -> None:
        clickable = self._theme.links and _SAFE_TARGET.match(target) is not None
        self._links.append((target, len(self.spans), clickable))
        self._looks.append(self._with("link"))

    def _close_link(self) -> None:
        target, first, clickable = self._links.pop()
        self._looks.pop()
        shown = "".join(span.text for span in self.spans[first:]).replace(_SOFT, " ")
        if _wants_target(shown, target, clickable):
            self._put(f" ({target})", self._with("target"))


def _harmless(match: re.Match[str]) -> str:
    return " " if match[0].isspace() else "\ufffd"


def _wants_target(shown: str, target: str, clickable: bool) -> bool:
    """Whether the address has to stand beside the text of its link.

    It does where it cannot be clicked on, and where the text looks like another address.
    """
    if not target or target.startswith("#") or _same_address(shown, target):
        return False
    return not clickable or _ADDRESS.search(shown.strip()) is not None


def _same_address(shown: str, target: str) -> bool:
    shown = shown.strip()
    if shown == target or f"mailto:{shown}" == target:
        return True
    try:
        parts, claimed = urlsplit(target), urlsplit(shown if "://" in shown else f"//{shown}")
        return (parts.netloc, parts.path.rstrip("/")) == (claimed.netloc, claimed.path.rstrip("/"))
    except ValueError:
        return False


def _plain_text(tokens: Sequence[Token]) -> list[str]:
    parts: list[str] = []
    for token in tokens:
        if token.children:
            parts += _plain_text(token.children)
        elif token.type in ("softbreak", "hardbreak"):
            parts.append(" ")
        else:
            parts.append(token.content)
    return parts


def _joined_lines(spans: list[Span]) -> list[Span]:
    """Line ends of the source become a space, and nothing between Han characters."""
    done: list[Span] = []
    last = ""
    for index, span in enumerate(spans):
        text = span.text
        if text == _SOFT:
            following = next((one.text[0] for one in spans[index + 1 :] if one.text), "")
            if not last or last == NEWLINE or (is_wide(last) and following and is_wide(following)):
                continue
            text = " "
        if text:
            last = text[-1]
            if not text.startswith(CUT):
                done.append(span._replace(text=text))
    return done
