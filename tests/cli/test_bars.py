"""What a download shows on a terminal: percentages, one bar for one file, a count-down."""

from __future__ import annotations

import pytest
from rich.console import Console

from tests.cli.conftest import memory_stream
from tests.cli.test_download import Clock
from xverse_cli.models.download.remote import RemoteFile
from xverse_cli.models.download.transfer import Status
from xverse_cli.render.bars import Bars
from xverse_cli.render.download import DownloadDisplay, Rest
from xverse_cli.streams import Streams

MIB = 2**20


def status(
    name: str, size: int, done: int, hashed: int = 0, waiting: tuple[str, float] | None = None
) -> Status:
    return Status(RemoteFile(name, size, "ab" * 32, None), done, hashed, waiting)


class Shown:
    """A display whose bars can be looked at as text."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, rest: Rest | None = None) -> None:
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv("COLUMNS", "100")
        self.clock = Clock()
        streams = Streams(None, memory_stream(), memory_stream(terminal=True))
        self.display = DownloadDisplay(streams, self.clock, rest)
        self.display.__enter__()

    def show(self, *statuses: Status, after: float = 0) -> list[str]:
        self.clock.now += after
        self.display.show(statuses)
        bars = self.display._bars
        assert isinstance(bars, Bars)
        console = Console(width=100, file=memory_stream(), color_system=None)
        with console.capture() as capture:
            for one in bars.get_renderables():
                console.print(one)
        return capture.get().splitlines()

    def close(self) -> None:
        self.display.__exit__(None, None, None)


def test_one_file_has_one_bar_with_its_percentage(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = Shown(monkeypatch)
    (line,) = shown.show(status("model.safetensors", 8 * MIB, 2 * MIB))
    assert line.startswith("model.safetensors")
    assert " 25% 2.0/8.0 MiB" in line
    lines = shown.show(status("a", 8 * MIB, 2 * MIB), status("b", 8 * MIB, 2 * MIB))
    assert sorted(one.split()[0] for one in lines[-3:]) == ["a", "b", "together"]
    shown.close()


def test_the_rest_counts_in_the_total(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = Shown(monkeypatch, Rest(20 * MIB, 30 * MIB, 2, 3))
    total, file = shown.show(status("model-3", 10 * MIB, 5 * MIB))
    assert " 62% 25.0/40.0 MiB" in total
    assert " 50% 5.0/10.0 MiB" in file
    shown.close()


def test_a_rate_decays_and_the_next_try_is_counted_down(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = Shown(monkeypatch)
    shown.show(status("a", 80 * MIB, 0))
    for second in range(1, 6):
        (line,) = shown.show(status("a", 80 * MIB, second * MIB), after=1)
    assert "1.0 MiB/s" in line
    assert "01:15" in line
    line, below = shown.show(status("a", 80 * MIB, 5 * MIB), after=4)
    assert "512.0 KiB/s" in line  # 4 MiB in the 8 s since the bar is there
    assert "nothing has come for 4 s" in below
    waiting = ("Connection refused", 12.0)
    line, below = shown.show(status("a", 80 * MIB, 5 * MIB, waiting=waiting), after=11)
    assert "0 bytes/s --:--" in line
    assert below == "Stalled: Connection refused; trying again in 12 s."
    (line,) = shown.show(status("a", 80 * MIB, 6 * MIB), after=1)
    assert "Stalled" not in line
    shown.close()


def test_the_bars_leave_room_for_an_echoed_ctrl_c(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = Shown(monkeypatch)
    name = "model-00001-of-00010.safetensors"
    assert [len(line) for line in shown.show(status(name, MIB, 5))] == [97]
    shown.close()
