"""Lines break where Chinese and English typesetting allow, and nothing is wider than it may be."""

from __future__ import annotations

import pytest

from xverse_cli.render.markdown.cells import pieces, upper_width, width_of
from xverse_cli.render.markdown.wrap import Row, Span, Wrapper, row_text, row_width, split_row, wrap

CASES = {
    "words": (10, "one two three", ["one two", "three"]),
    "exactly full": (7, "one two three", ["one two", "three"]),
    "spaces at the end hang": (7, "one two   three", ["one two", "three"]),
    "a long word": (5, "ab abcdefghij c", ["ab", "abcde", "fghij", "c"]),
    "Han anywhere": (8, "混合专家模型", ["混合专家", "模型"]),
    "odd width": (7, "混合专家模型", ["混合专", "家模型"]),
    "no line begins with a full stop": (8, "混合专家。模型", ["混合专", "家。模型"]),
    "nor with two": (8, "混合专家！”模型", ["混合专", "家！”模", "型"]),
    "none ends with an opening bracket": (8, "混合专（家）", ["混合专", "（家）"]),
    "nor with an opening quote": (8, "混合专《家》", ["混合专", "《家》"]),
    "over a space": (8, "混合专 （ 家", ["混合专", "（ 家"]),
    "closing over a space": (8, "混合专家 。模", ["混合专", "家 。模"]),
    "narrow closers after Han": (8, "混合专家,模型", ["混合专", "家,模型"]),
    "Han beside a word": (8, "使用Python写", ["使用", "Python写"]),
    "a word before a comma": (8, "abcdefgh，中", ["abcdefg", "h，中"]),
    "hyphenated": (8, "a state-of-the-art b", ["a state-", "of-the-", "art b"]),
    "not in addresses": (8, "a x/y-z/w-v", ["a", "x/y-z/w-", "v"]),
    "options": (8, "use --long-option", ["use", "--long-o", "ption"]),
    "curly apostrophes": (7, "we don’t go", ["we", "don’t", "go"]),
    "curly quotes in Chinese": (8, "他说“你好”", ["他说“你", "好”"]),
    "a dash pair": (8, "混合专家——", ["混合专", "家——"]),
    "emoji stay whole": (4, "a👨‍👩‍👧b", ["a", "👨‍👩‍👧", "b"]),
    "flags": (6, "ab🇨🇳🇯🇵", ["ab🇨🇳", "🇯🇵"]),
    "skin tones": (5, "ab👍🏽", ["ab", "👍🏽"]),
    "combining marks": (3, "ae\u0301io", ["ae\u0301i", "o"]),
    "keycaps": (3, "a1\ufe0f\u20e3b", ["a1\ufe0f\u20e3", "b"]),
    "Korean keeps words": (9, "안녕 세계여", ["안녕", "세계여"]),
    "only openers": (4, "（（（", ["（（", "（"]),
    "nothing": (4, "", []),
    "only spaces": (4, "   ", []),
}


@pytest.mark.parametrize(("width", "text", "expected"), CASES.values(), ids=CASES)
def test_breaks(width: int, text: str, expected: list[str]) -> None:
    assert [row_text(row) for row in wrap([Span(text)], width)] == expected


@pytest.mark.parametrize(("width", "text", "expected"), CASES.values(), ids=CASES)
def test_rows_that_are_out_never_change(width: int, text: str, expected: list[str]) -> None:
    wrapper, out = Wrapper(width), list[Row]()
    for piece in pieces(text):
        before = wrapper.copy()
        out += wrapper.feed([piece])
        assert [row_text(row) for row in out] == expected[: len(out)]
        before.finish()
    out += wrapper.finish()
    assert [row_text(row) for row in out] == expected


@pytest.mark.parametrize("width", [2, 3, 5, 8, 13, 40])
def test_no_row_is_too_wide(width: int) -> None:
    for _, text, _ in CASES.values():
        for row in wrap([Span(text * 3)], width):
            # One cluster may be wider than a line of two columns.
            assert row_width(row) <= width or len(list(pieces(row_text(row)))) == 1


def test_looks_stay_with_their_text() -> None:
    text = [Span("one ", "1"), Span("two", "2"), Span("three", "3")]
    assert wrap(text, 7) == [
        (Span("one", "1"),),
        (Span("two", "2"), Span("thre", "3")),
        (Span("e", "3"),),
    ]


def test_another_width_on_the_way() -> None:
    wrapper = Wrapper(20)
    assert wrapper.feed(pieces("one two three four")) == []
    assert [row_text(row) for row in wrapper.resize(8)] == ["one two", "three"]
    assert [row_text(row) for row in wrapper.finish()] == ["four"]


@pytest.mark.parametrize(
    ("text", "columns", "most"),
    [
        ("abc", 3, 3),
        ("中文", 4, 4),
        ("👨‍👩‍👧", 2, 6),
        ("🇨🇳", 2, 4),
        ("⚠️", 2, 2),
        ("e\u0301", 1, 1),
        ("", 0, 0),
    ],
)
def test_widths(text: str, columns: int, most: int) -> None:
    assert width_of(text) == columns
    assert upper_width(text) == most


def test_splitting_a_row() -> None:
    row = (Span("return ", "1"), Span("values + others"))
    head, rest = split_row(row, 16)
    assert (row_text(head), row_text(rest)) == ("return values + ", "others")
    assert split_row(row, 40) == (row, ())
    assert [row_text(part) for part in split_row((Span("abcdef"),), 4)] == ["abcd", "ef"]
