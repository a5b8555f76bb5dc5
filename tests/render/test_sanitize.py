"""Nothing that steers a terminal comes through, however it is cut into pieces."""

from __future__ import annotations

import unicodedata

import pytest

from xverse_cli.render.sanitize import Sanitizer, sanitize

CASES = {
    "plain": ("Hello, 世界 🎉\n\tx", "Hello, 世界 🎉\n\tx"),
    "C0": ("a\x00\x01\x07\x08\x0b\x0c\x0e\x1f\x7fb", "ab"),
    "carriage return": ("one\r\ntwo\rthree", "one\ntwothree"),
    "colour": ("a\x1b[1;31mred\x1b[0m", "ared"),
    "clear screen": ("\x1b[2J\x1b[Ha", "a"),
    "private mode": ("\x1b[?1049ha\x1b[?25l", "a"),
    "title by OSC, BEL": ("\x1b]0;title\x07a", "a"),
    "clipboard by OSC, ST": ("\x1b]52;c;aGk=\x1b\\a", "a"),
    "hyperlink": ("\x1b]8;;http://x\x1b\\text\x1b]8;;\x1b\\", "text"),
    "DCS": ("\x1bPq#0\x1b\\a", "a"),
    "APC, PM, SOS": ("\x1b_x\x1b\\\x1b^y\x1b\\\x1bXz\x1b\\a", "a"),
    "two characters": ("\x1bca\x1b7b\x1b=c", "abc"),
    "character set": ("\x1b(0a\x1b)Bb", "ab"),
    "C1 CSI": ("\x9b2Ja", "a"),
    "C1 OSC and ST": ("\x9d0;t\x9ca", "a"),
    "other C1": ("a\x85\x8d\x90x\x9cb", "ab"),
    "escape within a sequence": ("\x1b[\x1b[31ma", "a"),
    "control within a sequence": ("\x1b[3\n1ma", "\n1ma"),
    "escape ends a string": ("\x1b]0;t\x1b[31ma", "a"),
    "cancel ends a string": ("\x1b]0;t\x18a\x1b]0;t\x1ab", "ab"),
    "unfinished string ends with its line": ("\x1b]0;t\nrest", "\nrest"),
    "unfinished at the end": ("a\x1b", "a"),
    "double escape": ("\x1b\x1b[31ma", "a"),
    "bidirectional": ("a\u202eb\u2066c\u2069\u061cd", "abcd"),
    "marks that are text": ("a\u200eb\u200d", "a\u200eb\u200d"),
    "lone surrogate": ("a\ud83db", "a\ufffdb"),
    "text after ESC [ wide": ("\x1b[中", "中"),
    "text after ESC wide": ("\x1b中", "中"),
}


@pytest.mark.parametrize(("text", "safe"), CASES.values(), ids=CASES)
def test_whole(text: str, safe: str) -> None:
    assert sanitize(text) == safe


@pytest.mark.parametrize(("text", "safe"), CASES.values(), ids=CASES)
def test_split_anywhere(text: str, safe: str) -> None:
    for first in range(len(text) + 1):
        for second in range(first, len(text) + 1):
            one = Sanitizer()
            pieces = (text[:first], text[first:second], text[second:])
            assert "".join(one.feed(piece) for piece in pieces) == safe


def test_every_single_character() -> None:
    for code in range(0x3000):
        shown = sanitize("a" + chr(code))
        controls = [one for one in shown if unicodedata.category(one) == "Cc"]
        assert set(controls) <= {"\n", "\t"}, hex(code)


def test_it_is_idempotent() -> None:
    for text, _ in CASES.values():
        assert sanitize(sanitize(text)) == sanitize(text)
