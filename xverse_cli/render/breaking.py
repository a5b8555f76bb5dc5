"""Where a line may end: how characters behave there. Light enough for help."""

from __future__ import annotations

# Han and the like break on both sides, words break nowhere; openers end no line, closers start
# none. Narrow openers and closers are part of a word, but keep their side towards Han.
SPACE, HAN, WORD, OPENER, CLOSER, WORD_OPENER, WORD_CLOSER, MARK = range(8)

_OPENERS = "（《「『【〔〖〈［｛〝＜｟"
_CLOSERS = (
    "。，、；：？！）》」』】〕〗〉］｝〞〟＞｠．～—〜〰‼⁇⁈⁉・％‰℃°′″々ゝゞヽヾ〻ー゠"
    "ぁぃぅぇぉっゃゅょゎゕゖァィゥェォッャュョヮヵヶ｡､｣･ｰ"
)
_WORD_OPENERS = "([{“‘"
_WORD_CLOSERS = ")]},.;:!?%”’…·"
_WORDLIKE = frozenset((WORD, WORD_OPENER, WORD_CLOSER))

# The kinds of characters that are neither Han nor of words.
KINDS = {
    " ": SPACE,
    **dict.fromkeys(_OPENERS, OPENER),
    **dict.fromkeys(_CLOSERS, CLOSER),
    **dict.fromkeys(_WORD_OPENERS, WORD_OPENER),
    **dict.fromkeys(_WORD_CLOSERS, WORD_CLOSER),
}


def keeps_together(last: int, first: int) -> bool:
    """Whether punctuation holds two neighbours in one line, by their kinds."""
    return first in (CLOSER, WORD_CLOSER, MARK) or last in (OPENER, WORD_OPENER)


def within_word(last: int, first: int) -> bool:
    """Whether two neighbours are parts of one word, by their kinds."""
    return last in _WORDLIKE and first in _WORDLIKE
