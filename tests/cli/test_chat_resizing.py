"""Changes of size at the prompt, on a terminal that wraps rows again which have become too wide."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pyte
import pytest

from tests.cli.pseudo_terminal import PseudoTerminal
from tests.render.terminal import Terminal
from xverse_cli.chat.rewrapping import rows_above
from xverse_cli.settings import state_dir

pytestmark = pytest.mark.skipif(os.name == "nt", reason="POSIX terminals")

MESSAGE = "第一句：" + "今天天气很好，我们去公园散步吧，然后一起吃饭。" * 4 + " The end"


class RewrappingTerminal(PseudoTerminal):
    """As tmux, VTE, kitty and most others do it; with the lines that went out of sight."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._terminal = Terminal(self.screen.columns, self.screen.lines)
        self.screen = self._terminal.screen
        self._stream = pyte.ByteStream(self.screen)

    def resize_screen(self, columns: int, rows: int) -> None:
        self._terminal.resize(columns, rows)

    @property
    def text(self) -> str:
        return self._terminal.text


def test_nothing_of_the_prompt_is_left_behind(tmp_path: Path) -> None:
    state_dir().mkdir(parents=True)
    (state_dir() / "welcomed").touch()
    env = {"TMUX": "/tmp/tmux-0/default,1,0"}
    with RewrappingTerminal({}, "chat", "--model", str(tmp_path), env=env) as terminal:
        terminal.wait_for("\n>")
        for count in range(1, 5):  # what scrolls out of sight is to be other text
            terminal.type("question\r")
            terminal.wait_for("Hello there.", count)
        terminal.wait_for_pause()
        terminal.type(MESSAGE)
        terminal.wait_for("The end")
        for columns in (50, 75, 41, 60):
            terminal.resize(columns, 24)
            terminal.wait_for_pause()
            assert terminal.text.count("第一句") == 1, terminal.text
            assert terminal.text.count("fake · context") == 1  # what stands above is untouched
        terminal.type("\r")
        terminal.wait_for("Hello there.")


@pytest.mark.parametrize(
    ("rows", "columns", "above"),
    [
        ([""], 10, 0),
        (["", "> 12345678"], 10, 1),
        (["", "> 123456789"], 10, 2),
        (["123456", "12345", "1"], 5, 3),
        (["中文中文中"], 5, 2),  # a wide character does not fit into the last column
        (["中文中文中", "ab"], 4, 3),
    ],
)
def test_rows_above(rows: list[str], columns: int, above: int) -> None:
    cells = [[part for one in row for part in (one, "") if part or one >= "一"] for row in rows]
    assert rows_above(cells, columns) == above
