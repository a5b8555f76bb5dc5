"""Answers to questions: what means yes, what means no, and what is asked again."""

from __future__ import annotations

import pytest

from tests.cli.conftest import memory_stream, written
from xverse_cli.answers import YES_OR_NO, understood
from xverse_cli.streams import Streams


def asked(answers: str, *, default: bool = False) -> tuple[bool, str]:
    streams = Streams(memory_stream(answers.encode()), memory_stream(), memory_stream())
    agreed = streams.confirm("Really?", default=default)
    return agreed, written(streams.stderr).decode()


@pytest.mark.parametrize("word", ["y", "Y", "yes", "YES", " yes. ", "是", "好", "好的。", "ｙ"])
def test_yes(word: str) -> None:
    assert asked(f"{word}\n")[0] is True


@pytest.mark.parametrize("word", ["n", "No", "否", "不", "不要", "ｎ"])
def test_no(word: str) -> None:
    assert asked(f"{word}\n", default=True)[0] is False


@pytest.mark.parametrize("default", [True, False])
def test_enter_is_the_default_and_the_end_of_the_input_is_no(default: bool) -> None:
    assert asked("\n", default=default)[0] is default
    assert asked("", default=default)[0] is False


def test_what_cannot_be_understood_is_asked_again() -> None:
    agreed, shown = asked("xverse\nperhaps\nyes\n")
    assert agreed is True
    assert shown.count("Really?") == 3
    assert "none of the answers: y, n" in shown


def test_other_answers() -> None:
    answers = {**YES_OR_NO, "4": ("4", "int4")}
    assert [understood(one, answers) for one in ("int4", "４", "y", "", "8")] == [
        "4",
        "4",
        "y",
        "",
        None,
    ]
