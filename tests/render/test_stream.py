"""The sinks: bytes for pipes, safe text for terminals, every piece at once."""

from __future__ import annotations

import io
from typing import TextIO

import pytest

from xverse_cli.render.live import LiveSink, RowsSink
from xverse_cli.render.progress import byte_bar
from xverse_cli.render.remark import print_remark
from xverse_cli.render.statistics import statistics_line
from xverse_cli.render.stream import PlainSink, TerminalSink, TokenSink, reply_sink
from xverse_cli.streams import Streams
from xverse_runtime.types import LoadProgress, Pass, Timings, Usage


class Terminal(io.TextIOWrapper):
    def isatty(self) -> bool:
        return True


def streams(*, terminal: bool = False, encoding: str = "utf-8") -> Streams:
    kind = Terminal if terminal else io.TextIOWrapper
    stdout = kind(io.BytesIO(), encoding=encoding, errors="replace")
    return Streams(None, stdout, io.TextIOWrapper(io.BytesIO()))


def shown(stream: TextIO) -> bytes:
    """What has reached the other side: nothing is flushed here."""
    raw = stream.buffer
    assert isinstance(raw, io.BytesIO)
    return raw.getvalue()


def sink_of(terminal: bool) -> tuple[TokenSink, Streams]:
    """What writes a reply as it is."""
    out = streams(terminal=terminal)
    return reply_sink(out, {"TERM": "xterm"}, markdown=False), out


SINKS = {
    # a terminal, its TERM, and the choice: what writes the reply
    (False, "xterm", None): PlainSink,
    (False, "xterm", False): PlainSink,
    (False, "xterm", True): RowsSink,
    (True, "xterm", None): LiveSink,
    (True, "xterm", True): LiveSink,
    (True, "xterm", False): TerminalSink,
    (True, "dumb", None): TerminalSink,
    (True, "dumb", True): RowsSink,
    (True, "dumb", False): TerminalSink,
}


@pytest.mark.parametrize("case", SINKS)
def test_the_sink_suits_the_stream(case: tuple[bool, str, bool | None]) -> None:
    terminal, term, markdown = case
    assert type(reply_sink(streams(terminal=terminal), {"TERM": term}, markdown)) is SINKS[case]


@pytest.mark.parametrize("terminal", [False, True])
def test_every_piece_is_shown_at_once(terminal: bool) -> None:
    sink, out = sink_of(terminal)
    sink.write("混")
    assert shown(out.stdout) == "混".encode()
    sink.write("")
    sink.write(" b\n c")
    assert shown(out.stdout) == "混 b\n c".encode()


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize(("text", "whole"), [("a", "a\n"), ("a\n", "a\n"), ("", "\n")])
def test_close_completes_the_line(terminal: bool, text: str, whole: str) -> None:
    sink, out = sink_of(terminal)
    sink.write(text)
    sink.close()
    assert shown(out.stdout).decode() == whole


def test_the_terminal_is_not_steered_by_pieces() -> None:
    sink, out = sink_of(terminal=True)
    for character in "\x1b]0;t\x07a\x1b[2Jb":
        sink.write(character)
    assert shown(out.stdout) == b"ab"


def test_the_terminal_gets_no_markup_no_emoji_codes_and_no_wrapping() -> None:
    sink, out = sink_of(terminal=True)
    text = "[bold]x[/bold] :smile: Vec<T> <think> 123 'a' " + "long " * 100
    sink.write(text)
    assert shown(out.stdout).decode() == text


def test_tabs_stay_tabs() -> None:
    sink, out = sink_of(terminal=True)
    sink.write("a\tb")
    assert shown(out.stdout) == b"a\tb"


def test_a_terminal_of_another_encoding_never_fails() -> None:
    out = streams(terminal=True, encoding="gbk")
    sink = TerminalSink(out)
    sink.write("混合 🎉")
    assert shown(out.stdout) == "混合 ?".encode("gbk")


def test_statistics() -> None:
    line = statistics_line(Usage(40, 23, 12), Timings(0.314, 100.0, 4.14))
    assert line.split(" · ") == [
        "23 tokens, 4.1 tokens/s",
        "first after 0.31 s",
        "prompt 40 tokens, 12 cached",
    ]
    assert statistics_line(Usage(), Timings(), [Pass(0, 0)]) == statistics_line(Usage(), Timings())
    line = statistics_line(Usage(), Timings(), [Pass(4, 3), Pass(0, 0), Pass(2, 2)])
    assert line.split(" · ")[-1] == "5 of 6 proposed tokens right"


def test_remarks_wrap_between_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "12")
    stream = Terminal(io.BytesIO(), encoding="utf-8")
    print_remark("one two three [x] four", "dim", stream)
    lines = shown(stream).decode().replace("\x1b[2m", "").replace("\x1b[0m", "").splitlines()
    assert [line.strip() for line in lines] == ["one two", "three [x]", "four"]


def test_chinese_remarks_fill_their_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    stream = Terminal(io.BytesIO(), encoding="utf-8")
    print_remark("  许可：本程序采用 Apache-2.0。模型的权重适用许可协议。\n好", "dim", stream)
    lines = shown(stream).decode().replace("\x1b[2m", "").replace("\x1b[0m", "").splitlines()
    assert lines == [
        "  许可：本程序采用",
        "  Apache-2.0。模型的",
        "  权重适用许可协议。",
        "好",
    ]


def test_remarks_go_on_below_their_first_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "24")
    stream = Terminal(io.BytesIO(), encoding="utf-8")
    words = "  2. Every turn is saved on disk\n 10 words go on\n20. under /tmp/a-long-name"
    print_remark(words, "dim", stream)
    lines = shown(stream).decode().replace("\x1b[2m", "").replace("\x1b[0m", "").splitlines()
    assert lines == [
        *("  2. Every turn is saved", "     on disk", " 10 words go on"),
        *("20. under", "    /tmp/a-long-name"),
    ]


def test_the_byte_bar_goes_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal(io.BytesIO(), encoding="utf-8")
    with byte_bar("[model]", stream) as progress:
        progress(LoadProgress(1, 2))
    text = shown(stream).decode()
    assert "[model]" in text
    assert text.endswith("\x1b[2K")  # the line is erased
    assert "\x1b[?25h" in text  # the cursor is back


def test_the_byte_bar_on_a_dumb_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    stream = Terminal(io.BytesIO(), encoding="utf-8")
    with byte_bar("m", stream) as progress:
        progress(LoadProgress(1, 2))
    assert shown(stream) == b"m\n"


def test_no_byte_bar_without_a_terminal() -> None:
    with byte_bar("m", None) as progress:
        progress(LoadProgress(1, 2))
