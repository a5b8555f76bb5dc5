"""The prompt, fed with keys through a pipe: sending, new lines, pastes, history."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from prompt_toolkit.input import PipeInput, create_pipe_input
from prompt_toolkit.output import DummyOutput

from tests.cli.conftest import memory_stream, written
from xverse_cli.chat.history import PrivateHistory, open_history
from xverse_cli.chat.input import PipedLines, TerminalPrompt, message_source
from xverse_cli.chat.slash import as_message
from xverse_cli.settings import state_dir
from xverse_cli.streams import Streams


@pytest.fixture
def streams() -> Streams:
    return Streams(memory_stream(), memory_stream(), memory_stream())


@pytest.fixture
def keys() -> Iterator[PipeInput]:
    with create_pipe_input() as pipe:
        yield pipe


Read = Callable[..., str]


@pytest.fixture
def read(streams: Streams, keys: PipeInput) -> Read:
    """Types some text and returns what the prompt makes of it."""
    prompt = TerminalPrompt(streams, input=keys, output=DummyOutput())

    def typed(text: str, prefill: str = "") -> str:
        keys.send_text(text)
        return prompt.read(prefill)

    return typed


def test_enter_sends(read: Read) -> None:
    assert read("hello 你好 👩‍💻\r") == "hello 你好 👩‍💻"


def test_alt_enter_and_ctrl_j_start_a_new_line(read: Read) -> None:
    assert read("one\x1b\rtwo\nthree\r") == "one\ntwo\nthree"


def test_a_paste_is_one_message(read: Read) -> None:
    assert read("\x1b[200~/exit\r\nline 2\rline 3\x1b[201~\r") == "/exit\nline 2\nline 3"


@pytest.mark.parametrize("pasted", ["/exit", "// a comment\nint x;", "//", "x /exit"])
def test_a_paste_that_looks_like_a_command_is_text(read: Read, pasted: str) -> None:
    assert as_message(read(f"\x1b[200~{pasted}\x1b[201~\r")) == pasted


def test_behind_other_text_a_paste_is_as_it_is(read: Read) -> None:
    assert read("/load \x1b[200~/abc\x1b[201~\r") == "/load /abc"


def test_chinese_arrives_in_pieces(read: Read, keys: PipeInput) -> None:
    data = "混合".encode()
    for start in range(len(data)):
        keys.send_bytes(data[start : start + 1])
    assert read("\r") == "混合"


LEFT, RIGHT, BACKSPACE, DELETE = "\x1b[D", "\x1b[C", "\x7f", "\x1b[3~"


@pytest.mark.parametrize(
    "one", ["中", "👩\u200d💻", "e\u0301", "👍🏽", "🇨🇳", "각", "❤\ufe0f"], ids=ascii
)
def test_the_cursor_moves_over_what_readers_see_as_one(read: Read, one: str) -> None:
    assert read(f"a{one}b{LEFT}{LEFT}|\r") == f"a|{one}b"
    assert read(f"a{one}b{LEFT * 3}{RIGHT * 2}|\r") == f"a{one}|b"
    assert read(f"a{one}{BACKSPACE}b\r") == "ab"
    assert read(f"a{one}b{LEFT}{LEFT}{DELETE}\r") == "ab"


def test_the_cursor_stays_in_its_line_and_backspace_joins_lines(read: Read) -> None:
    assert read(f"a\nb{LEFT * 3}|\r") == "a\n|b"
    assert read(f"a\nb{LEFT}{BACKSPACE}|\r") == "a|b"
    assert read(f"a\nb\x1b[A{RIGHT * 9}{DELETE}\r") == "ab"


def test_prefill_can_be_changed(read: Read) -> None:
    assert read("!\r", "again") == "again!"


def test_ctrl_c_and_ctrl_d(read: Read) -> None:
    with pytest.raises(KeyboardInterrupt):
        read("half a line\x03")
    with pytest.raises(EOFError):
        read("\x04")


def test_ctrl_d_does_not_leave_a_line_that_has_text(read: Read) -> None:
    assert read("ab\x02\x04\r") == "a"


def test_history(read: Read, home: Path) -> None:
    read("first\r")
    read("second\nline\r")
    assert read("\x10\x10\x10\r") == "first"
    path = state_dir() / "history"
    assert home in path.parents
    assert "+second" in path.read_text(encoding="utf-8")


@pytest.mark.skipif(os.name == "nt", reason="POSIX permissions")
def test_the_history_is_private(streams: Streams) -> None:
    state_dir().mkdir(parents=True)
    (state_dir() / "history").write_text("", encoding="utf-8")
    (state_dir() / "history").chmod(0o644)
    open_history(streams)
    assert stat.S_IMODE((state_dir() / "history").stat().st_mode) == 0o600
    assert stat.S_IMODE(state_dir().stat().st_mode) == 0o700


def test_without_a_history_file_the_chat_works(streams: Streams) -> None:
    state_dir().parent.mkdir(parents=True)
    state_dir().write_text("in the way", encoding="utf-8")
    open_history(streams).store_string("x")
    assert "The history cannot be kept" in written(streams.stderr).decode()


def test_a_full_disk_is_complained_of_once(
    streams: Streams, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: object, string: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("prompt_toolkit.history.FileHistory.store_string", full)
    history = PrivateHistory(tmp_path / "history", streams)
    history.append_string("one")
    history.append_string("two")
    assert history.get_strings() == ["one", "two"]
    assert written(streams.stderr).decode().count("No space left") == 1


def test_piped_lines() -> None:
    stdin = memory_stream("一\n\nlast".encode())
    source = PipedLines(Streams(stdin, memory_stream(), memory_stream()))
    assert [source.read() for _ in range(3)] == ["一", "", "last"]
    with pytest.raises(EOFError):
        source.read()


def test_the_source_suits_the_streams() -> None:
    piped = Streams(memory_stream(), memory_stream(terminal=True), memory_stream(terminal=True))
    assert isinstance(message_source(piped), PipedLines)
    unseen = Streams(memory_stream(terminal=True), memory_stream(), memory_stream())
    assert isinstance(message_source(unseen), PipedLines)
    assert isinstance(message_source(Streams(None, *[memory_stream()] * 2)), PipedLines)
