"""Highlights code line by line, each line once.

Pygments' lexers want a whole text. Theirs are state machines over regular expressions, so a lexer
goes on from the states that the lines before left; where something is open over a line end (a
comment, a string), the lines are read again from where it began.
"""

from __future__ import annotations

import re
from typing import Any

from xverse_cli.render.markdown.theme import Theme
from xverse_cli.render.markdown.wrap import Row, Span

_MOST_AGAIN = 40  # lines read again at most
# Some lexers only know what is open over a line end when they see its end.
_CLOSINGS = ("*/", "-->", "'", '"', "`")
_OPENS = re.compile(r"/\*(?!.*\*/)|<!--(?!.*-->)")


class Highlighter:
    """The lines of one block of code, one after the other.

    Args:
        language: what stands after the fence; an unknown one is not highlighted.
    """

    def __init__(self, language: str, theme: Theme) -> None:
        self._theme = theme
        self._lexer: Any = _lexer(language) if theme.styled else None
        self._resumes = _resumes(self._lexer)
        self._states: tuple[str, ...] = ("root",)
        self._held: list[str] = []

    def copy(self) -> Highlighter:
        other = object.__new__(Highlighter)
        other.__dict__.update(self.__dict__)
        other._held = self._held.copy()
        return other

    def line(self, line: str) -> Row:
        """The next line, without its line end, in its looks."""
        if self._lexer is None or not line:
            if self._lexer is not None:
                self._read("")
            return (Span(line),) if line else ()
        return tuple(self._read(line))

    def _read(self, line: str) -> list[Span]:
        from pygments.token import Comment, Error, String

        before = sum(len(one) for one in self._held)
        self._held.append(line + "\n")
        text = "".join(self._held)
        tokens, completed = list(self._tokens(text)), None
        if self._resumes and (_OPENS.search(line) or any(one[1] is Error for one in tokens)):
            completed = self._completed(text)
            tokens = completed or tokens
        spans: list[Span] = []
        last_kind, last_start, after = Error, 0, self._states
        for start, kind, value, states in tokens:
            after = states
            if start + len(value) > before:
                self._put(spans, value[max(0, before - start) :].rstrip("\n"), kind)
            if value.strip() or kind in String:
                last_kind, last_start = kind, start
        unsure = last_kind in Comment.Multiline or last_kind in String or last_kind is Error
        again = completed or ((unsure or last_start < before) and len(after) == 1)
        if not again or len(self._held) >= _MOST_AGAIN or not self._resumes:
            self._held.clear()
            self._states = after
        return spans

    def _completed(self, text: str) -> list[tuple[int, Any, str, tuple[str, ...]]] | None:
        """The tokens of ``text`` if a comment or a string is open at its end."""
        from pygments.token import Comment, Error, String

        for closing in _CLOSINGS:
            tokens = list(self._tokens(f"{text}{closing}\n"))
            last = next(one for one in tokens if one[0] + len(one[2]) >= len(text))
            if (last[1] in Comment or last[1] in String) and not any(
                one[1] is Error for one in tokens
            ):
                inside = [one for one in tokens if one[0] < len(text)]
                return [(at, kind, value[: len(text) - at], on) for at, kind, value, on in inside]
        return None

    def _tokens(self, text: str) -> Any:
        if self._resumes:
            return _tokens(self._lexer, text, self._states)
        found = self._lexer.get_tokens_unprocessed(text)
        return ((start, kind, value, ("root",)) for start, kind, value in found)

    def _put(self, spans: list[Span], text: str, kind: Any) -> None:
        if not text:
            return
        look = self._theme.token(kind)
        if spans and spans[-1].sgr == look:
            spans[-1] = Span(spans[-1].text + text, look)
        else:
            spans.append(Span(text, look))


def _resumes(lexer: Any) -> bool:
    """Whether ``lexer`` is a plain state machine; others see each line by itself."""
    from pygments.lexer import ExtendedRegexLexer, RegexLexer

    return isinstance(lexer, RegexLexer) and not isinstance(lexer, ExtendedRegexLexer)


def _lexer(language: str) -> Any:
    from pygments.lexers import get_lexer_by_name
    from pygments.util import ClassNotFound

    name = language.strip().split()[0].strip("{}.").lower() if language.strip() else ""
    if not name or len(name) > 40:
        return None
    try:
        return get_lexer_by_name(name)
    except ClassNotFound:
        return None


def _tokens(lexer: Any, text: str, states: tuple[str, ...]) -> Any:
    """Positions, types and texts, each with the stack of states after it."""
    from pygments.token import Error, Whitespace, _TokenType

    table, stack, position = lexer._tokens, list(states), 0
    while position < len(text):
        for matches, action, following in table[stack[-1]]:
            match = matches(text, position)
            if not match:
                continue
            if following is not None:
                _move(stack, following)
            if action is not None:
                if type(action) is _TokenType:
                    yield position, action, match.group(), tuple(stack)
                else:
                    for start, kind, value in action(lexer, match):
                        yield start, kind, value, tuple(stack)
            position = match.end()
            break
        else:
            kind = Error
            if text[position] == "\n":
                stack, kind = ["root"], Whitespace
            yield position, kind, text[position], tuple(stack)
            position += 1


def _move(stack: list[str], following: Any) -> None:
    """Change the stack of states as a rule of a lexer says."""
    if isinstance(following, int):
        del stack[max(1, len(stack) + following) :]
        return
    for state in following if isinstance(following, tuple) else (following,):
        if state == "#pop":
            if len(stack) > 1:
                stack.pop()
        else:
            stack.append(stack[-1] if state == "#push" else state)
