"""What stops a reply or the whole chat, on a real pseudo-terminal: nothing said is lost."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from tests.cli.pseudo_terminal import PseudoTerminal
from xverse_cli.chat.conversation import Turn
from xverse_cli.chat.sessions.folder import saved_sessions
from xverse_cli.chat.sessions.reading import SavedSession

pytestmark = pytest.mark.skipif(os.name == "nt", reason="POSIX terminals and signals")

CHAT = ("chat", "--model")
LONG = {"replies": ["abcdefghij" * 50, "Next."], "token_s": 0.02}


def newest() -> SavedSession:
    """The session last written to, also while its chat goes on."""
    return next(iter(saved_sessions()))


def begin(terminal: PseudoTerminal) -> None:
    terminal.wait_for("/help lists the commands")
    terminal.wait_for("\n>")


def test_ctrl_c_stops_within_200_ms(tmp_path: Path) -> None:
    """The best of a few tries, as others load the machine."""
    script = {"replies": ["abcdefghij" * 50], "token_s": 0.02}
    took = []
    with PseudoTerminal(script, *CHAT, str(tmp_path)) as terminal:
        begin(terminal)
        while len(took) < 5 and min(took, default=1) >= 0.2:
            terminal.type("go\r")
            terminal.wait_for("abcdefghij", len(took) + 1)
            terminal.type("\x03")
            pressed = time.monotonic()
            terminal.wait_for("Stopped.", len(took) + 1)
            took.append(time.monotonic() - pressed)
            terminal.wait_for_pause()
    assert min(took) < 0.2


def test_a_reply_that_was_stopped_is_kept_and_gone_on_with(tmp_path: Path) -> None:
    script = {"replies": ["abcdefghij" * 50, "The rest."], "token_s": 0.02}
    with PseudoTerminal(script, *CHAT, str(tmp_path)) as terminal:
        begin(terminal)
        terminal.type("go\r")
        terminal.wait_for("abcdefghij")
        terminal.type("\x03")
        terminal.wait_for("Stopped.")
        (turn,) = newest().conversation.turns
        assert turn.interrupted
        terminal.type("/continue\r")
        terminal.wait_for("The rest.")
        terminal.wait_for("\n>", 3)
    (whole,) = newest().conversation.turns
    assert whole == Turn("go", turn.assistant + "The rest.")


def test_ctrl_c_during_prefill_gives_the_message_back(tmp_path: Path) -> None:
    with PseudoTerminal({"prefill_s": 30.0}, *CHAT, str(tmp_path)) as terminal:
        begin(terminal)
        terminal.type("a long question\r")
        time.sleep(0.5)
        terminal.type("\x03")
        terminal.wait_for("Your message is back at the prompt.")
        terminal.wait_for("> a long question", 2)
    assert newest().unsent == "a long question"


def test_ctrl_c_at_the_prompt(tmp_path: Path) -> None:
    with PseudoTerminal({}, *CHAT, str(tmp_path)) as terminal:
        begin(terminal)
        terminal.type("text\x03")
        terminal.wait_for("To leave, press Ctrl-D")
        terminal.type("\x1b[A")  # what was cleared is in the history
        terminal.wait_for("> text", 2)
        terminal.type("\x03")
        terminal.wait_for("To leave, press Ctrl-D", 2)
        terminal.type("\x03")  # the first at an empty prompt
        terminal.wait_for("To leave, press Ctrl-D", 3)
        terminal.type("\x03")
        assert terminal.wait_for_end() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_during_a_reply_saves_what_was_said(
    tmp_path: Path, number: signal.Signals
) -> None:
    with PseudoTerminal(LONG, *CHAT, str(tmp_path)) as terminal:
        begin(terminal)
        terminal.type("go\r")
        terminal.wait_for("abcdefghij")
        terminal.process.send_signal(number)
        assert terminal.wait_for_end() == 130
    (turn,) = newest().conversation.turns
    assert turn.user == "go"
    assert turn.interrupted
    assert turn.assistant.startswith("abcdefghij")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_at_the_prompt_saves_what_was_typed(
    tmp_path: Path, number: signal.Signals
) -> None:
    with PseudoTerminal({}, *CHAT, str(tmp_path)) as terminal:
        begin(terminal)
        terminal.type("half a message")
        terminal.wait_for("> half a message")
        terminal.process.send_signal(number)
        assert terminal.wait_for_end() == 130
    assert newest().unsent == "half a message"


def test_a_window_that_is_closed_during_a_reply(tmp_path: Path) -> None:
    with PseudoTerminal(LONG, *CHAT, str(tmp_path)) as terminal:
        begin(terminal)
        terminal.type("go\r")
        terminal.wait_for("abcdefghij")
        terminal.hang_up()
        terminal.process.wait(10)
    (turn,) = newest().conversation.turns
    assert (turn.user, turn.interrupted) == ("go", True)
    assert turn.assistant.startswith("abcdefghij")


def test_a_window_that_is_closed_at_the_prompt(tmp_path: Path) -> None:
    with PseudoTerminal({}, *CHAT, str(tmp_path)) as terminal:
        begin(terminal)
        terminal.type("half a message")
        terminal.wait_for("> half a message")
        terminal.hang_up()
        terminal.process.wait(10)
    assert newest().unsent == "half a message"


def test_a_resize_while_a_reply_is_written(tmp_path: Path) -> None:
    script = {"replies": ["一二三四五六七八九十" * 9], "token_s": 0.01}
    with PseudoTerminal(script, *CHAT, str(tmp_path)) as terminal:
        begin(terminal)
        terminal.type("go\r")
        terminal.wait_for("一二三")
        for columns, rows in ((50, 10), (120, 40), (40, 12), (80, 24)):
            terminal.resize(columns, rows)
            time.sleep(0.15)
        terminal.wait_for("context 111/4096")
        terminal.type("/exit\r")
        assert terminal.wait_for_end() == 0
        assert "Traceback" not in terminal.text
    (turn,) = newest().conversation.turns
    assert turn == Turn("go", "一二三四五六七八九十" * 9)


def test_a_full_disk_is_loud_and_the_conversation_goes_on(tmp_path: Path) -> None:
    script = {"replies": ["First.", "Second.", "Third."]}
    with PseudoTerminal(script, *CHAT, str(tmp_path), rows=60, file_bytes=2000) as terminal:
        begin(terminal)
        terminal.type("one\r")
        terminal.wait_for("First.")
        terminal.type("two" * 500 + "\r")
        terminal.wait_for("NOT SAVED")
        terminal.wait_for("File too large")
        terminal.type("three\r")
        terminal.wait_for("Third.")
        terminal.wait_for("NOT SAVED", 2)
        terminal.type("/exit\r")
        assert terminal.wait_for_end() == 0
        assert "Traceback" not in terminal.text
    saved = newest()
    assert [turn.user for turn in saved.conversation.turns] == ["one"]
    assert saved.damaged == 0


def test_stdin_that_is_closed(tmp_path: Path) -> None:
    import subprocess
    import sys

    from tests.cli.conftest import FAKE_MAIN

    program = [sys.executable, str(FAKE_MAIN), "{}", "chat", "--model", str(tmp_path)]
    done = subprocess.run(["sh", "-c", '"$@" <&-', "sh", *program], capture_output=True, timeout=30)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
