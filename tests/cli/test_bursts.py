"""Text that a terminal sends faster than anybody types."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
from prompt_toolkit.input import PipeInput, create_pipe_input
from prompt_toolkit.key_binding.key_processor import KeyProcessor
from prompt_toolkit.output import DummyOutput

from tests.cli.conftest import memory_stream
from xverse_cli.chat.input import TerminalPrompt
from xverse_cli.streams import Streams

LINES = [f"第 {number} 行: the quick brown fox, 敏捷的棕狐 👩‍💻" for number in range(300)]


@pytest.fixture
def keys() -> Iterator[PipeInput]:
    with create_pipe_input() as pipe:
        yield pipe


def typed(keys: PipeInput, *sendings: str, editing: str = "emacs") -> str:
    """What the prompt makes of one text after the other; the last one is to send the message."""
    streams = Streams(memory_stream(), memory_stream(), memory_stream())
    prompt = TerminalPrompt(streams, input=keys, output=DummyOutput(), editing=editing)

    def send() -> None:
        for text in sendings:
            before = ""
            time.sleep(0.3)  # later than what was typed ahead
            while before != (before := prompt._buffer.text):
                time.sleep(0.3)
            keys.send_text(text)

    thread = threading.Thread(target=send)
    thread.start()
    try:
        return prompt.read()
    finally:
        thread.join()


@pytest.mark.parametrize("editing", ["emacs", "vi"])
@pytest.mark.parametrize("ending", ["\r", "\n"])
def test_an_unmarked_paste_comes_whole_and_by_lines_not_by_characters(
    keys: PipeInput, editing: str, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    handled: list[object] = []
    call = KeyProcessor._call_handler

    def counted(self: KeyProcessor, handler: object, key_sequence: list[object]) -> None:
        handled.append(key_sequence)
        call(self, handler, key_sequence)  # type: ignore[arg-type]

    monkeypatch.setattr(KeyProcessor, "_call_handler", counted)
    pasted = "\n".join(LINES)
    assert typed(keys, pasted.replace("\n", ending), "\r", editing=editing) == pasted
    # A line and its break are two keys; reads end within lines.
    assert len(handled) < 2 * len(LINES) + len(pasted) // 8 < len(pasted) / 2


def test_what_is_no_text_stays_keys(keys: PipeInput) -> None:
    """Moving, and commands of vi, however fast they come."""
    assert typed(keys, "one two three four\x01zero \x05 five\r") == "zero one two three four five"
    left = typed(keys, "one two three four", "\x1b", "0dwdwiabcdefghij ", "\r", editing="vi")
    assert left == "abcdefghij three four"


def test_a_command_of_several_keys_is_not_torn(keys: PipeInput) -> None:
    # Alt-3 takes the next key three times.
    assert typed(keys, "\x1b3", "abcdefghij", "\r") == "aaabcdefghij"


def test_a_whole_command_line_that_comes_at_once_is_sent(keys: PipeInput) -> None:
    assert typed(keys, "/set temperature 0\r") == "/set temperature 0"
