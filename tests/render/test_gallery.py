"""Replies as models write them look as they did when they were looked at."""

from __future__ import annotations

import pytest

from tests.render.gallery import COLUMNS, PICTURES, golden, picture, replies, screen

CASES = [(name, columns) for name in replies() for columns in COLUMNS]


@pytest.mark.parametrize(("name", "columns"), CASES)
def test_screens(name: str, columns: int) -> None:
    lines = screen(replies()[name], columns)
    assert "\n".join(lines) + "\n" == golden(name, columns).read_text("utf-8")


@pytest.mark.parametrize(("name", "columns"), CASES)
def test_pictures_are_those_of_today(name: str, columns: int) -> None:
    kept = (PICTURES / f"{name}-{columns}.svg").read_text("utf-8")
    assert kept == picture(replies()[name], columns), "python -m tests.render.gallery renews it"


def test_nothing_is_left_of_what_is_gone() -> None:
    expected = {f"{name}-{columns}.svg" for name, columns in CASES}
    assert {path.name for path in PICTURES.glob("*.svg")} == expected
