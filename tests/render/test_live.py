"""Rendering runs beside decoding: never in its way, never torn, closed whatever happens."""

from __future__ import annotations

import errno
import io
import threading
import time

import pytest

from tests.render.terminal import Terminal
from xverse_cli.render.live import LiveSink, RowsSink, shows_links
from xverse_cli.render.stream import reply_sink
from xverse_cli.streams import Streams

ENVIRON = {"TERM": "xterm-256color", "COLORTERM": "truecolor"}


class Slow(io.TextIOWrapper):
    """A terminal that takes its time, or fails."""

    def __init__(self, delay: float = 0.0, error: OSError | None = None, encoding: str = "utf-8"):
        super().__init__(io.BytesIO(), encoding=encoding, errors="replace", newline="")
        self.delay, self.error = delay, error
        self.writes: list[str] = []

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        if self.error is not None:
            raise self.error
        time.sleep(self.delay)
        self.writes.append(text)
        return super().write(text)

    @property
    def shown(self) -> str:
        raw = self.buffer
        assert isinstance(raw, io.BytesIO)
        return raw.getvalue().decode(self.encoding)


def sink_on(stdout: io.TextIOWrapper, environ: dict[str, str] = ENVIRON) -> LiveSink:
    sink = reply_sink(Streams(None, stdout, io.StringIO()), environ)
    assert isinstance(sink, LiveSink)
    return sink


def on_screen(stdout: Slow) -> list[str]:
    terminal = Terminal(80, 24)
    terminal.write(stdout.shown)
    return terminal.lines


def test_a_slow_terminal_slows_no_token() -> None:
    """The best of a few tries, as others load the machine."""
    took: list[float] = []
    while len(took) < 4 and min(took, default=1) >= 0.2:
        stdout = Slow(delay=0.2)
        sink = sink_on(stdout)
        sink.write("first ")
        began = time.monotonic()
        for number in range(2000):
            sink.write(f"{number} ")
        took.append(time.monotonic() - began)
        sink.close()
    assert min(took) < 0.2
    assert on_screen(stdout)[0].startswith("first 0 1 2")
    assert on_screen(stdout)[-1].endswith("1998 1999")
    assert len(stdout.writes) < 10  # frames were left out, text was not


def test_thirty_frames_a_second_at_most() -> None:
    stdout = Slow()
    sink = sink_on(stdout)
    began = time.monotonic()
    for number in range(100):
        sink.write(f"{number} ")
        time.sleep(0.004)
    sink.close()
    assert len(stdout.writes) <= (time.monotonic() - began) * 30 + 3
    assert len(stdout.writes) > 3


def test_the_first_token_is_shown_at_once() -> None:
    stdout = Slow()
    sink = sink_on(stdout)
    time.sleep(0.5)  # the modules are loaded
    sink.write("混")
    end = time.monotonic() + 5
    while not stdout.writes and time.monotonic() < end:
        time.sleep(0.005)
    assert stdout.shown == "混"
    sink.close()


def test_what_waits_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xverse_cli.render.live.MOST_WAITING", 1000)
    stdout = Slow(delay=0.05)
    sink = sink_on(stdout)
    for _ in range(50):
        sink.write("word " * 40)
        assert sink._waiting_length < 1200
    sink.close()
    assert sum(line.count("word") for line in on_screen(stdout)) == 2000


@pytest.mark.parametrize("code", [errno.EPIPE, errno.EIO, errno.ENOSPC])
def test_an_error_of_writing_reaches_the_writer(code: int) -> None:
    sink = sink_on(Slow(error=OSError(code, "gone")))
    sink.write("text\n\n")
    end = time.monotonic() + 10
    while sink._error is None and time.monotonic() < end:
        time.sleep(0.005)
    with pytest.raises(OSError, match="standard output") as raised:
        sink.write("more")
    assert raised.value.errno == code
    with pytest.raises(OSError, match="standard output"):
        sink.close()


def test_an_unused_sink_leaves_no_thread() -> None:
    sink_on(Slow())
    time.sleep(0.3)
    assert "reply" not in [thread.name for thread in threading.enumerate()]


def test_a_closed_sink_leaves_no_thread() -> None:
    sink = sink_on(Slow())
    sink.write("a")
    sink.close()
    assert "reply" not in [thread.name for thread in threading.enumerate()]


@pytest.mark.parametrize("text", ["", "a", "a\n", "a\n\n", "```\na", "|a|\n|-|\n|b", "**a", "- "])
def test_a_reply_ends_with_its_line(text: str) -> None:
    stdout = Slow()
    sink = sink_on(stdout)
    sink.write(text)
    sink.close()
    terminal = Terminal(80, 24)
    terminal.write(stdout.shown)
    assert terminal.screen.cursor.x == 0
    assert terminal.screen.cursor.y == max(1, len(terminal.lines))


def test_another_encoding_never_fails() -> None:
    stdout = Slow(encoding="gbk")
    sink = sink_on(stdout)
    sink.write("# 混合 🎉\n\n- 专家 é\n\n> a\n\n| a | b |\n|---|---|\n| 🎉 | 中 |\n\n---\n")
    sink.close()
    shown = on_screen(stdout)
    assert shown[0] == "混合 ?"
    assert "* 专家 é" in shown or "* 专家 ?" in shown
    assert "| a" in shown
    assert "a | b" in shown
    assert "--+---" in shown
    assert "? | 中" in shown


def rows_of(text: str, environ: dict[str, str]) -> str:
    stdout = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", newline="")
    sink = reply_sink(Streams(None, stdout, io.StringIO()), environ, markdown=True)
    assert isinstance(sink, RowsSink)
    for character in text:
        sink.write(character)
    sink.close()
    stdout.flush()
    raw = stdout.buffer
    assert isinstance(raw, io.BytesIO)
    return raw.getvalue().decode()


def test_rendered_into_a_pipe() -> None:
    text = "# A *b*\n\n- c `d`\n\n[e](https://x.y/)\n"
    assert rows_of(text, ENVIRON) == "# A b\n\n• c `d`\n\ne (https://x.y/)\n"
    assert rows_of("", ENVIRON) == "\n"


def test_colours_in_a_pipe_where_they_are_asked_for() -> None:
    forced = rows_of("# A\n\n`d`", {**ENVIRON, "FORCE_COLOR": "1"})
    assert "\x1b[36md\x1b[m" in forced
    assert "\x1b[?2026" not in forced
    both = rows_of("# A\n\n`d`", {**ENVIRON, "FORCE_COLOR": "1", "NO_COLOR": "1"})
    assert "\x1b[36m" not in both


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, False),
        ({"TERM": "xterm-256color"}, False),
        ({"TERM": "linux"}, False),
        ({"TERM": "xterm-kitty"}, True),
        ({"VTE_VERSION": "7200"}, True),
        ({"VTE_VERSION": "4200"}, False),
        ({"TERM_PROGRAM": "iTerm.app"}, True),
        ({"TERM_PROGRAM": "Apple_Terminal"}, False),
        ({"WT_SESSION": "x"}, True),
    ],
)
def test_which_terminals_show_links(environ: dict[str, str], expected: bool) -> None:
    assert shows_links(environ) is expected
