"""Whatever the text, however it is cut, whenever the screen changes: what is shown is right."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.render.support import THEME, lines, terminal_after
from tests.render.terminal import Terminal
from tests.render.test_hostile import check
from xverse_cli.render.markdown.display import Display
from xverse_cli.render.markdown.stream import MarkdownStream
from xverse_cli.render.markdown.wrap import row_width

WIDTHS = (20, 40, 80, 200)
# Everything that begins, ends or is mistaken for syntax, with words of both languages between.
FRAGMENTS = [
    *(
        "**",
        "*",
        "_",
        "__",
        "`",
        "``",
        "~~",
        "[",
        "](http://a.b/c)",
        "]",
        "![",
        "<",
        ">",
        "&",
        "\\",
    ),
    *("\n", "\n", "\n\n", "\n\n\n", "\r\n", "  \n", "    ", "  ", "   ", "\t", " ", " ", " "),
    *(
        "# ",
        "## ",
        "- ",
        "* ",
        "1. ",
        "2) ",
        "10. ",
        "> ",
        ">",
        "- [x] ",
        "- [ ] ",
        "+",
        "=",
        "1",
        ".",
    ),
    *("```", "```py\n", "~~~\n", "---\n", "===\n", "***\n", "|", "| a | b |\n", "|---|--:|\n"),
    *("$", "$$", "$$\n", "\\(", "\\)", "\\[", "\\]", "$x_1$", "&amp;", "<think>", "<http://x.y>"),
    *("[foo]", "[foo]: /u\n", "[foo][bar]", "word", "hello world ", "a", "b", "x = 1\n", "'''"),
    *("/* ", " */", "中文", "，", "。", "（重点）", "**重点：**", "《书》", "混合专家模型", "“引”"),
    "，这是一个很长的句子，没有空格，也没有换行，需要在正确的地方断开。",
    "long words and more long words follow here, all of them ",
    *("supercalifragilisticexpialidocious", "https://example.com/a/very/long/path"),
    *("👨‍👩‍👧", "🇨🇳", "👍🏽", "é", "e\u0301", "\u200b", "🎉", "한국어 ", "1️⃣"),
    *("&#13;", "&#x202e;", "&NewLine;", "<http://x.y/%1b[2J%0d>", "\x9b2J", "\x1b[2J\x1b[H"),
    *("\x1b[31m", "\x1b]0;t\x07", "\x1b", "\u202e", "\x07", "\ufeff", "\ud800"),
]
TEXTS = st.lists(st.sampled_from(FRAGMENTS), max_size=60).map("".join)
FAST = settings(
    max_examples=300,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
    phases=(Phase.explicit, Phase.generate, Phase.shrink),
)
LONG = settings(FAST, max_examples=4000)


@st.composite
def cut_texts(draw: st.DrawFn, texts: st.SearchStrategy[str] = TEXTS) -> list[str]:
    """A text, in pieces."""
    text = draw(texts)
    places = draw(st.sets(st.integers(0, len(text)), max_size=15))
    edges = [0, *sorted(places), len(text)]
    return [text[begin:end] for begin, end in pairwise(edges)]


SIZES = st.tuples(st.integers(8, 100), st.integers(4, 30))


def cutting_changes_nothing(pieces_of: list[str], columns: int, rows: int) -> None:
    text = "".join(pieces_of)
    whole = terminal_after([text], columns, rows).lines
    assert terminal_after(pieces_of, columns, rows).lines == whole
    assert terminal_after(text, columns, rows).lines == whole


def resizing_loses_and_doubles_nothing(
    pieces_of: list[str], sizes: list[tuple[int, int]], reflows: bool
) -> None:
    terminal = Terminal(80, 24, reflows=reflows)
    display = Display(THEME, lambda: (terminal.columns, terminal.rows))
    for number, piece in enumerate(pieces_of):
        for at in range(0, max(1, len(piece)), 3):  # a frame at least between two changes
            terminal.write(display.frame(piece[at : at + 3]))
        terminal.resize(*sizes[number % len(sizes)])
    terminal.write(display.close())
    expected = terminal_after(["".join(pieces_of)], 100, 50).lines
    assert letters(terminal.lines) == letters(expected)
    assert "…" not in "".join(terminal.lines)  # no table that never came


def resizing_while_a_frame_is_laid_out(
    pieces_of: list[str], sizes: list[tuple[int, int]], reflows: bool
) -> None:
    terminal = Terminal(80, 24, reflows=reflows)
    changes = iter(sizes * 1000)
    late = False

    def size() -> tuple[int, int]:
        nonlocal late
        answer = terminal.columns, terminal.rows
        if late:  # the answer is old at once
            terminal.resize(*next(changes))
            late = False
        return answer

    display = Display(THEME, size)
    text = "".join(pieces_of)
    for number, at in enumerate(range(0, len(text), 5)):
        late = number % 3 == 0
        terminal.write(display.frame(text[at : at + 5]))
    late = True
    terminal.write(display.close())
    assert letters(terminal.lines) == letters(terminal_after([text], 100, 50).lines)


def letters(shown: Iterable[str]) -> Counter[str]:
    """How often each letter is there, whatever marks it bears."""
    text = unicodedata.normalize("NFD", "".join(shown))
    return Counter(character for character in text if character.isalnum())


def unchanging(text: str) -> bool:
    """Whether no letter of ``text`` is syntax or shown more than once.

    A change of size on the way makes text of an entity or a link, and a narrow table repeats its
    header.
    """
    return not any(sign in text for sign in "&|[…")


@given(cut_texts(), st.sampled_from(WIDTHS), st.sampled_from((4, 10, 24)))
@FAST
def test_cutting(pieces_of: list[str], columns: int, rows: int) -> None:
    cutting_changes_nothing(pieces_of, columns, rows)


@given(cut_texts(TEXTS.filter(unchanging)), st.lists(SIZES, min_size=1, max_size=6), st.booleans())
@FAST
def test_resizing(pieces_of: list[str], sizes: list[tuple[int, int]], reflows: bool) -> None:
    resizing_loses_and_doubles_nothing(pieces_of, sizes, reflows)


@given(cut_texts(TEXTS.filter(unchanging)), st.lists(SIZES, min_size=1, max_size=6), st.booleans())
@FAST
def test_resizing_while_a_frame_is_laid_out(
    pieces_of: list[str], sizes: list[tuple[int, int]], reflows: bool
) -> None:
    resizing_while_a_frame_is_laid_out(pieces_of, sizes, reflows)


@pytest.mark.slow
@given(cut_texts(), st.sampled_from(WIDTHS), st.sampled_from((4, 10, 24)))
@LONG
def test_cutting_long(pieces_of: list[str], columns: int, rows: int) -> None:
    cutting_changes_nothing(pieces_of, columns, rows)


@pytest.mark.slow
@given(cut_texts(TEXTS.filter(unchanging)), st.lists(SIZES, min_size=1, max_size=6), st.booleans())
@LONG
def test_resizing_long(pieces_of: list[str], sizes: list[tuple[int, int]], reflows: bool) -> None:
    resizing_loses_and_doubles_nothing(pieces_of, sizes, reflows)


@given(TEXTS, st.sampled_from(WIDTHS))
@FAST
def test_nothing_steers_the_terminal(text: str, columns: int) -> None:
    display = Display(THEME, lambda: (columns, 24))
    written = [display.frame(text[at : at + 7]) for at in range(0, len(text), 7)]
    check("".join([*written, display.close()]))


@given(TEXTS, st.sampled_from(WIDTHS))
@FAST
def test_no_row_is_wider_than_the_screen(text: str, columns: int) -> None:
    stream = MarkdownStream(THEME, columns, 24)
    for row in [*stream.feed(text), *stream.tail(), *stream.finish()]:
        assert row_width(row) <= columns


@given(TEXTS.filter(unchanging), st.sampled_from(WIDTHS))
@FAST
def test_every_width_shows_the_same_letters(text: str, columns: int) -> None:
    assert letters(lines(text, columns)) == letters(lines(text, 400, screen_rows=400))


PROSE = st.lists(
    st.sampled_from(
        [
            "混",
            "合。",
            "专家，",
            "（重",
            "《书》",
            "“引”",
            "（GPU）",
            "word",
            "words, ",
            " ",
            "a",
            "12；",
            "🎉！",
        ]
    ),
    max_size=80,
).map("".join)


@given(PROSE, st.sampled_from((7, 8, 20, 40)))
@FAST
def test_kinsoku(text: str, columns: int) -> None:
    shown = lines(text, columns)
    assert not [line for line in shown if line and line[0] in "。，、；：？！）》」”"]
    assert not [line for line in shown if line and line[-1] in "（《「“"]
