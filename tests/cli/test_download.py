"""Parts of the downloader by themselves: the table of parts, proxies, patience, the display."""

from __future__ import annotations

import errno
import os
import time
from dataclasses import dataclass
from email.utils import formatdate
from pathlib import Path

import pytest

from tests.cli.conftest import Cli, memory_stream, written
from tests.cli.pull_support import PART, REPO, contents, hub, snapshot, two_shards
from tests.hub_server import HubServer
from xverse_cli.models.download import partial_file, parts
from xverse_cli.models.download.http import proxy_for, retry_after
from xverse_cli.models.download.parts import PartTable, Pinned, read_progress
from xverse_cli.models.download.patience import Patience
from xverse_cli.render.download import DownloadDisplay, Rate, duration
from xverse_cli.streams import QUIET, Streams

__all__ = ["hub"]
PINNED = Pinned("ab" * 32, 5 * PART + 7, "model.bin", "org/name", "c" * 40, "huggingface")


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "PART_BYTES", PART)


def reopened(path: Path, data_bytes: int = PINNED.size, pinned: Pinned = PINNED) -> PartTable:
    table = PartTable.open(path, pinned, data_bytes)
    table.close()
    return table


@pytest.fixture
def begun(tmp_path: Path) -> Path:
    """A table of which the first part and half of the third are written, the first also synced."""
    path = tmp_path / "x.parts"
    table = PartTable.open(path, PINNED, 0)
    table.advance(0, 0, PART)
    table.mark_synced(table.snapshot())
    table.advance(2, 0, PART // 2)
    table.close()
    return path


def test_a_killed_process_loses_nothing(begun: Path) -> None:
    table = reopened(begun)
    assert [table.written(part.index) for part in table.parts] == [PART, 0, PART // 2, 0, 0, 0]
    assert table.frontier == PART
    assert [part.end - part.start for part in table.parts] == [*[PART] * 5, 7]


def test_after_a_power_cut_only_what_was_synced_counts(
    begun: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "boot_id", lambda: "another start")
    assert reopened(begun).done_bytes == PART


def test_where_the_system_tells_no_start_only_what_was_synced_counts(
    begun: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "boot_id", lambda: "")
    assert reopened(begun).done_bytes == PART


def test_a_table_of_something_else_is_not_believed(begun: Path) -> None:
    other = Pinned("cd" * 32, PINNED.size, *["x"] * 4)
    assert reopened(begun, pinned=other).done_bytes == 0


def test_a_table_without_its_data_is_not_believed(begun: Path) -> None:
    assert reopened(begun, data_bytes=10).done_bytes == 0


@pytest.mark.parametrize("damage", ["short", "noise", "huge", "negative", "list"])
def test_a_damaged_table_is_not_believed(begun: Path, damage: str) -> None:
    data = bytearray(begun.read_bytes())
    at = parts.HEADER_BYTES
    if damage == "short":
        data = data[:-3]
    elif damage == "noise":
        data[:20] = b"\xff" * 20
    elif damage == "list":
        data[:at] = b"[]".ljust(at)
    else:
        data[at : at + 8] = (2**40 if damage == "huge" else -5).to_bytes(8, "little", signed=True)
    begun.write_bytes(data)
    assert reopened(begun).written(0) == 0


def test_progress_can_be_read_by_others(begun: Path, tmp_path: Path) -> None:
    assert read_progress(begun) == (PINNED, PART + PART // 2)
    assert read_progress(tmp_path / "none") is None


def test_written_never_goes_back(begun: Path) -> None:
    table = PartTable.open(begun, PINNED, PINNED.size)
    table.advance(2, 0, 5)
    table.advance(2, PART // 2 + 1, PART)  # after a gap
    table.close()
    assert table.written(2) == PART // 2


# Proxies and waiting.


def test_proxies_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    assert proxy_for("https://huggingface.co/x") is None
    monkeypatch.setenv("HTTPS_PROXY", "127.0.0.1:7890")
    assert proxy_for("https://huggingface.co/x") == "http://127.0.0.1:7890"
    monkeypatch.setenv("NO_PROXY", "huggingface.co,.internal")
    assert proxy_for("https://huggingface.co/x") is None
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:1080")
    assert proxy_for("http://elsewhere.org") == "socks5://127.0.0.1:1080"


def test_a_proxy_is_used(cli: Cli, hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add_model(REPO, two_shards())
    monkeypatch.setenv("NO_PROXY", "")
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    result = cli("pull", REPO, "--accept-license", "--source", "modelscope")
    assert result.code == 3
    assert "cannot be reached" in result.stderr
    monkeypatch.setenv("HTTP_PROXY", "socks5://127.0.0.1:9")
    result = cli("pull", REPO, "--accept-license", "--source", "modelscope")
    assert result.code == 2
    assert "pip install PySocks" in result.stderr


def test_how_long_a_server_asks_to_wait() -> None:
    assert retry_after("3") == 3
    assert retry_after(None) is None
    assert retry_after("soon") is None
    assert 8 < (retry_after(formatdate(time.time() + 10, usegmt=True)) or 0) <= 10
    assert retry_after("-4") == 0


def test_patience_doubles_up_to_a_limit() -> None:
    patience = Patience(first_wait_s=1, longest_wait_s=8)
    waits = [patience.wait(failures, None) for failures in range(1, 7)]
    for wait, longest in zip(waits, (1, 2, 4, 8, 8, 8), strict=True):
        assert 0.75 * longest <= wait <= longest
    assert patience.wait(1, 30) == 30
    assert patience.wait(1, 1e9) == 80


# The disk.


def test_a_disk_that_fills_up_keeps_what_is_there(
    cli: Cli, hub: HubServer, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = two_shards()
    commit = hub.add_model(REPO, files)
    original, room = partial_file._write_at, [4 * PART]

    def write(file: int, data: memoryview, offset: int) -> int:
        if room[0] < len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        room[0] -= len(data)
        return original(file, data, offset)

    monkeypatch.setattr(partial_file, "_write_at", write)
    result = cli("pull", REPO, "--accept-license")
    assert result.code == 5
    assert "Not enough space" in result.stderr
    room[0] = 2**30
    before = hub.served_bytes
    assert cli("pull", REPO).code == 0
    assert contents(snapshot(home, commit)) == files
    assert hub.served_bytes - before < sum(map(len, files.values())) - 2 * PART


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_cache_that_may_not_be_written(cli: Cli, hub: HubServer, home: Path) -> None:
    hub.add_model(REPO, two_shards())
    (home / "hub").mkdir(mode=0o555)
    result = cli("pull", REPO, "--accept-license")
    assert result.code == 2
    assert "HF_HOME" in result.stderr


# The display.


@dataclass
class Shown:
    name: str
    size: int
    done: int
    hashed: int


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_plain_lines_now_and_then() -> None:
    streams, clock = Streams(None, memory_stream(), memory_stream()), Clock()
    with DownloadDisplay(streams, clock) as display:
        for second in range(40):
            clock.now = 100.0 + second
            display.show([Shown("a.bin", 100 * 2**20, second * 2**20, 0), Shown("b", 0, 0, 0)])
        display.say("a remark")
    lines = written(streams.stderr).decode().splitlines()
    assert lines == [
        "15.0 MiB of 100.0 MiB (15 %), 1.0 MiB/s, 1 min left, 1/2 files done",
        "30.0 MiB of 100.0 MiB (30 %), 1.0 MiB/s, 1 min left, 1/2 files done",
        "a remark",
    ]


def test_quiet_says_nothing() -> None:
    streams, clock = Streams(None, memory_stream(), memory_stream(), QUIET), Clock()
    with DownloadDisplay(streams, clock) as display:
        display.show([Shown("a.bin", 100, 0, 0)])
        clock.now += 100
        display.show([Shown("a.bin", 100, 50, 0)])
        display.say("a remark")
    assert written(streams.stderr) == b""


def test_bars_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    streams = Streams(None, memory_stream(), memory_stream(terminal=True))
    with DownloadDisplay(streams) as display:
        display.show([Shown("a.bin", 2**30, 2**29, 2**28), Shown("b.bin", 2**20, 2**20, 0)])
        time.sleep(0.3)
    shown = written(streams.stderr).decode()
    assert "a.bin" in shown
    assert "b.bin (checking)" in shown
    assert "together" in shown


def test_the_rate_is_that_of_the_last_seconds() -> None:
    clock = Clock()
    rate = Rate(clock)
    assert rate.add(0) is None
    clock.now += 5
    assert rate.add(500) == 100
    for _ in range(20):
        clock.now += 1
        last = rate.add(500)
    assert last == 0


def test_durations() -> None:
    assert [duration(one) for one in (5.9, 60, 3725)] == ["5 s", "1 min", "1 h 02 min"]
