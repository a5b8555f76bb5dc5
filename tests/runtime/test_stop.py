"""Stop strings over every way of cutting a text into pieces."""

from __future__ import annotations

import itertools

import pytest

from xverse_runtime.stop import StopMatcher


def run(pieces: list[str], stops: list[str]) -> tuple[str, bool]:
    matcher = StopMatcher(stops)
    shown = "".join(matcher.push(piece) for piece in pieces)
    return shown + matcher.flush(), matcher.stopped


def cuts(text: str) -> list[list[str]]:
    """All ways to cut a text."""
    ways = []
    for marks in itertools.product([False, True], repeat=len(text) - 1):
        pieces, start = [], 0
        for at, cut in enumerate(marks, start=1):
            if cut:
                pieces.append(text[start:at])
                start = at
        ways.append([*pieces, text[start:]])
    return ways


@pytest.mark.parametrize(
    ("text", "stops", "shown"),
    [
        ("abXYcd", ["XY"], "ab"),
        ("ababac", ["abac"], "ab"),
        ("aab", ["ab"], "a"),
        ("你好。停止", ["。停"], "你好"),
        ("nothing", ["stop"], "nothing"),
        ("ends wi", ["with"], "ends wi"),
        ("XY", ["XY"], ""),
        ("a\n\nb", ["\n\n"], "a"),
        ("abc", ["c", "bc"], "a"),
    ],
)
def test_every_cut_shows_the_same(text: str, stops: list[str], shown: str) -> None:
    for pieces in cuts(text):
        assert run(pieces, stops) == (shown, any(stop in text for stop in stops))


def test_text_that_cannot_become_a_stop_is_passed_on_at_once() -> None:
    matcher = StopMatcher(["END"])
    assert matcher.push("hello") == "hello"
    assert matcher.push(" E") == " "
    assert matcher.push("x") == "Ex"


def test_without_stops_nothing_is_held() -> None:
    assert StopMatcher([]).push("E") == "E"


def test_after_a_stop_nothing_more_is_shown() -> None:
    matcher = StopMatcher(["."])
    assert matcher.push("a.b") == "a"
    assert (matcher.push("c"), matcher.flush()) == ("", "")
