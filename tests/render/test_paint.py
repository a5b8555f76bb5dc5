"""What is written to bring the screen up to date: as little as possible, and never torn."""

from __future__ import annotations

import pytest

from tests.render.terminal import Terminal
from xverse_cli.render.markdown.paint import Painter, plain_rows
from xverse_cli.render.markdown.wrap import Row, Span

BEGIN, END = "\x1b[?2026h", "\x1b[?2026l"


def rows(*texts: str) -> list[Row]:
    return [(Span(text),) if text else () for text in texts]


def test_more_text_is_written_as_it_is() -> None:
    painter = Painter()
    assert painter.frame([], rows("one")) == "one"
    assert painter.frame([], rows("one two")) == " two"
    assert painter.frame([], rows("one two", "three")) == "\nthree"
    assert painter.frame(rows("one two"), rows("three", "", "four")) == "\n\nfour"
    assert painter.frame(rows("three", "", "four"), []) == ""
    assert painter.frame([], rows("five")) == "\nfive"
    assert painter.close() == "\n"


def test_the_same_again_writes_nothing() -> None:
    painter = Painter()
    painter.frame(rows("a"), rows("b", "c"))
    assert painter.frame([], rows("b", "c")) == ""


def test_a_difference_is_one_synchronised_update() -> None:
    painter = Painter()
    painter.frame(rows("above"), rows("混合 **bo", "second"))
    written = painter.frame([], [(Span("混合 "), Span("bo", "1")), (Span("second"),)])
    assert written == f"{BEGIN}\x1b[1A\r\x1b[5C\x1b[J\x1b[1mbo\x1b[m\nsecond{END}"


def test_rows_that_go() -> None:
    painter = Painter()
    painter.frame(rows("above"), rows("one", "two", "three"))
    assert painter.frame([], rows("one")) == f"{BEGIN}\x1b[1A\r\x1b[J\x1b[A\rone{END}"
    assert painter.frame([], rows("one more")) == " more"
    # Nothing but the last finished row is left, and that one is never written again.
    assert painter.frame([], []) == f"{BEGIN}\r\x1b[J\x1b[A{END}"
    assert painter.frame([], rows("new")) == "\nnew"


def test_a_row_of_uncertain_width_is_written_from_its_beginning() -> None:
    painter = Painter()
    painter.frame([], rows("👨‍👩‍👧 **a"))
    written = painter.frame([], [(Span("👨‍👩‍👧 "), Span("a", "1"))])
    assert written == f"{BEGIN}\r\x1b[J👨‍👩‍👧 \x1b[1ma\x1b[m{END}"


@pytest.mark.parametrize("mark", ["\u0301", "\u200d👧", "\U0001f3fd", "\ufe0f"])
def test_what_joins_the_character_before_is_written_with_it(mark: str) -> None:
    painter = Painter()
    painter.frame([], rows("ab👨"))
    written = painter.frame([], rows("ab👨" + mark))
    assert "👨" + mark in written


def test_looks_and_links() -> None:
    painter = Painter()
    row = (Span("a", "1"), Span("b", "4;34", "https://x.y"))
    link = "\x1b]8;;https://x.y\x1b\\\x1b[4;34mb\x1b[m\x1b]8;;\x1b\\"
    assert painter.frame([row], []) == f"\x1b[1ma\x1b[m{link}"
    assert plain_rows([row, ()]) == f"\x1b[1ma\x1b[m{link}\n\n"


def test_any_frames_end_as_the_last_one_alone() -> None:
    """Tails of every kind one after the other: the screen is as if only the last had been."""
    tails = [
        rows("a"),
        rows("a", "b", "c"),
        rows("x" * 20),
        rows("x" * 20, "y" * 20),
        rows("x" * 20),
        [],
        rows("", "", "z"),
        rows("混" * 10, "q"),
        rows("混" * 9),
        rows("混" * 9 + "z", "", "", ""),
        rows("end"),
    ]
    for first in range(len(tails)):
        terminal, painter = Terminal(20, 8), Painter()
        terminal.write(painter.frame(rows("above"), []))
        for tail in [*tails[first:], *tails[:first]]:
            terminal.write(painter.frame([], tail))
            shown = "\n".join(["above", *("".join(span.text for span in row) for row in tail)])
            assert terminal.text == shown.rstrip("\n")
        terminal.write(painter.frame(rows("done"), []) + painter.close())
        assert terminal.lines == ["above", "done"]
