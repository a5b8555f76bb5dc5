"""markdown-it, set up for what models write.

Different from CommonMark: HTML is text, mathematics stays as written, emphasis works beside Han and
full-width punctuation, tables and strikethrough are read. A paragraph that begins with `CUT` is the
rest of one whose beginning is on the screen: it can be no heading, no table and no list item.
"""

from __future__ import annotations

import re
from functools import lru_cache

from markdown_it import MarkdownIt
from markdown_it.common.utils import isMdAsciiPunct, isPunctChar, isWhiteSpace
from markdown_it.parser_inline import ParserInline
from markdown_it.rules_block import StateBlock, lheading, table
from markdown_it.rules_inline import StateInline
from markdown_it.rules_inline.state_inline import Scanned
from markdown_it.token import Token
from markdown_it.utils import EnvType

from xverse_cli.render.markdown.cells import is_wide

# No text holds it: control characters are taken out before.
CUT = "\x01"

# Quotes and items inside one another; what is deeper is text. (An item of a list counts twice.)
MOST_FRAMES = 24
_DEEP = re.compile(rf"(?: *(?:>|(?:[-+*]|\d{{1,9}}[.)])(?= ))){{{MOST_FRAMES}}}")

# Mathematics inside a line; a price is none: the closing dollar follows no space, and no digit
# follows it. Looked for within this many characters, so that a lone dollar holds nothing up.
MOST_MATHS = 400
_MATHS = re.compile(
    rf"\$\$(?!\$)[^$\x01]{{1,{MOST_MATHS}}}?\$\$"
    rf"|\$(?![\s$])(?:[^$\\\n\x01]|\\[^\n]){{1,{MOST_MATHS}}}?(?<!\s)\$(?![0-9])"
    rf"|\\\((?=[^()]*\w)[^\x01]{{1,{MOST_MATHS}}}?\\\)"
    rf"|\\\[(?=[^\[\]]*\w)[^\x01]{{1,{MOST_MATHS}}}?\\\]"
)


@lru_cache(1)
def parser() -> MarkdownIt:
    """The one parser; it keeps nothing between texts."""
    md = MarkdownIt("commonmark")
    md.inline = _Inline()
    md.configure("commonmark", {"html": False, "maxNesting": 4 * MOST_FRAMES})
    md.enable(["table", "strikethrough"])
    md.inline.ruler.before("escape", "maths", _maths)
    md.block.ruler.at("lheading", _heading_unless_cut)
    md.block.ruler.at("table", _table_unless_cut, {"alt": ["paragraph", "reference"]})
    md.block.ruler.before(
        "fence", "maths_block", _maths_block, {"alt": ["paragraph", "blockquote", "list"]}
    )
    return md


def not_too_deep(line: str) -> str:
    """``line``, in which what more quotes and items would contain is plain text."""
    match = _DEEP.match(line)
    if match is None or CUT in line:
        return line
    return f"{line[: match.end()]} {CUT}{CUT}{line[match.end() :]}"


def going_on(last: str) -> str:
    """What the rest of a paragraph begins with, after its character ``last``.

    Letters tell what follows about their neighbour; a sign would be read as one once more.
    """
    return CUT + (last if last.isalnum() or is_wide(last) else CUT)


def match_maths(source: str, at: int) -> int:
    """Where mathematics that begins at ``at`` ends; ``at`` when none does."""
    match = _MATHS.match(source, at)
    return match.end() if match else at


def flanks(source: str, start: int, end: int, *, splits_words: bool) -> tuple[bool, bool]:
    """Whether the delimiters at ``start:end`` may open and may close.

    CommonMark's rule, but Han and full-width punctuation beside a delimiter count as letters do
    on their own side and as punctuation does on the other: ``**重点：**内容`` is meant as it looks.
    """
    last = source[start - 1] if start else " "
    after = source[end] if end < len(source) else " "
    last_space, after_space = isWhiteSpace(ord(last)), isWhiteSpace(ord(after))
    last_punctuation, after_punctuation = _is_punctuation(last), _is_punctuation(after)
    last_wide, after_wide = is_wide(last), is_wide(after)
    left = not after_space and (
        not after_punctuation or after_wide or last_space or last_punctuation or last_wide
    )
    right = not last_space and (
        not last_punctuation or last_wide or after_space or after_punctuation or after_wide
    )
    opens = left and (splits_words or not right or last_punctuation)
    closes = right and (splits_words or not left or after_punctuation)
    return opens, closes


def _is_punctuation(character: str) -> bool:
    return isMdAsciiPunct(ord(character)) or isPunctChar(character)


class _State(StateInline):
    def scanDelims(self, start: int, canSplitWord: bool) -> Scanned:  # noqa: N802, N803
        end = start
        while end < self.posMax and self.src[end] == self.src[start]:
            end += 1
        opens, closes = flanks(self.src, start, end, splits_words=canSplitWord)
        return Scanned(opens, closes, end - start)


class _Inline(ParserInline):
    def parse(self, src: str, md: MarkdownIt, env: EnvType, tokens: list[Token]) -> list[Token]:
        state = _State(src, md, env, tokens)
        self.tokenize(state)
        for rule in self.ruler2.getRules(""):
            rule(state)
        return state.tokens


def _maths(state: StateInline, silent: bool) -> bool:
    if state.src[state.pos] not in "$\\":
        return False
    end = match_maths(state.src, state.pos)
    if end == state.pos or end > state.posMax:
        return False
    if not silent:
        token = state.push("maths", "", 0)
        token.content = state.src[state.pos : end]
    state.pos = end
    return True


def _line(state: StateBlock, number: int) -> str:
    return state.src[state.bMarks[number] + state.tShift[number] : state.eMarks[number]].rstrip()


def _maths_block(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    """From a line that begins with ``$$`` or is ``\\[`` to its end or the next empty line."""
    if state.is_code_block(start):
        return False
    line = _line(state, start)
    if line.startswith("$$") and "$" not in line[2:]:
        closing = "$$"
    elif line.startswith("\\[") and (len(line) == 2 or line[2].isspace()) and "\\]" not in line:
        closing = "\\]"
    else:
        return False
    if silent:
        return True
    number, closed = start + 1, False
    while number < end and not state.isEmpty(number) and state.sCount[number] >= state.blkIndent:
        number += 1
        if _line(state, number - 1).endswith(closing):
            closed = True
            break
    token = state.push("maths_block", "", 0)
    token.content = state.getLines(start, number, state.sCount[start], True)
    token.map = [start, number]
    token.meta = {"closed": closed}
    state.line = number
    return True


def _is_cut(state: StateBlock, line: int) -> bool:
    return state.src.startswith(CUT, state.bMarks[line] + state.tShift[line])


def _heading_unless_cut(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    return not _is_cut(state, start) and lheading(state, start, end, silent)


def _table_unless_cut(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    return not _is_cut(state, start) and table(state, start, end, silent)
