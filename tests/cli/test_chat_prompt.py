"""The prompt of `xverse chat` on a real pseudo-terminal: typing, pasting, keys, loading."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from tests.cli.pseudo_terminal import TIMEOUT_S, PseudoTerminal
from xverse_cli.chat.sessions.folder import saved_sessions
from xverse_cli.chat.sessions.reading import SavedSession
from xverse_cli.settings import state_dir

pytestmark = pytest.mark.skipif(os.name == "nt", reason="POSIX terminals")

CHAT = ("chat", "--model")
PASTE = "\x1b[200~{}\x1b[201~"


def messages() -> list[str]:
    """What was sent, as it is on disk once the last of it is answered."""
    end = time.monotonic() + TIMEOUT_S
    while newest().unsent and time.monotonic() < end:
        time.sleep(0.02)
    return [turn.user for turn in newest().conversation.turns]


def newest() -> SavedSession:
    """The session last written to, also while its chat goes on."""
    return next(iter(saved_sessions()))


def begin(terminal: PseudoTerminal) -> None:
    terminal.wait_for("/help lists the commands")
    terminal.wait_for("\n>")


def test_what_is_typed_while_the_model_loads_is_kept_and_answered(tmp_path: Path) -> None:
    with PseudoTerminal({"load_s": 2.0}, *CHAT, str(tmp_path)) as terminal:
        terminal.wait_for("loading")
        terminal.wait_for("60 %")
        terminal.type("typed while")
        terminal.wait_for("> typed while")
        assert "context 4096" not in terminal.text  # it still loads
        terminal.wait_for("fake · context 4096 tokens")
        terminal.type(" it loads\r")
        terminal.wait_for("Hello there.")
        assert messages() == ["typed while it loads"]


def test_a_message_sent_while_the_model_loads_waits_for_it(tmp_path: Path) -> None:
    with PseudoTerminal({"load_s": 1.0}, *CHAT, str(tmp_path)) as terminal:
        terminal.wait_for("loading")
        terminal.type("first\r")
        terminal.wait_for("Hello there.")
        assert terminal.text.count("fake · context 4096 tokens") == 1
        assert terminal.text.index("fake · context") < terminal.text.index("Hello there.")


def test_ctrl_c_while_a_message_waits_gives_it_back(tmp_path: Path) -> None:
    with PseudoTerminal({"load_s": 3.0}, *CHAT, str(tmp_path)) as terminal:
        terminal.wait_for("loading")
        terminal.type("first\r")
        terminal.wait_for("Loading")
        terminal.type("\x03")
        terminal.wait_for("> first", count=2)
        terminal.type("!\r")
        terminal.wait_for("Hello there.")
        assert messages() == ["first!"]


def test_leaving_while_the_model_loads_does_not_wait_for_it(tmp_path: Path) -> None:
    with PseudoTerminal({"load_s": 60.0}, *CHAT, str(tmp_path)) as terminal:
        terminal.wait_for("loading")
        terminal.type("\x04")
        started = time.monotonic()
        assert terminal.wait_for_end() == 0
        assert time.monotonic() - started < 5


def test_a_model_that_cannot_be_loaded_ends_the_prompt_and_saves_what_was_typed(
    tmp_path: Path,
) -> None:
    script = {"load_s": 1.0, "break": "MemoryError"}
    with PseudoTerminal(script, *CHAT, str(tmp_path)) as terminal:
        terminal.wait_for("loading")
        terminal.type("half a message")
        assert terminal.wait_for_end() == 5
        assert "error: out of memory" in terminal.text
        assert "What you had written is saved" in terminal.text
    assert newest().unsent == "half a message"


def test_a_paste_is_one_message_whatever_it_contains(tmp_path: Path) -> None:
    with PseudoTerminal({"replies": ["A.", "B.", "C."]}, *CHAT, str(tmp_path)) as terminal:
        begin(terminal)
        terminal.type(PASTE.format("/exit\r/help\rend"))
        terminal.wait_for("end")
        terminal.type("\r")
        terminal.wait_for("A.")
        terminal.type(PASTE.format("one\ttab and \x1b[A escapes") + "\r")
        terminal.wait_for("B.")
        terminal.type(PASTE.format("/exit") + "\r")
        terminal.wait_for("C.")
        assert messages() == ["/exit\n/help\nend", "one\ttab and \x1b[A escapes", "/exit"]


def test_a_paste_while_a_reply_is_written_is_one_message_too(tmp_path: Path) -> None:
    script = {"replies": ["abcdefghij", "Second."], "token_s": 0.05}
    with PseudoTerminal(script, *CHAT, str(tmp_path)) as terminal:
        begin(terminal)
        terminal.type("go\r")
        terminal.wait_for("ab")
        assert terminal.marks_pastes
        terminal.type(PASTE.format("line 1\r/exit\rline 3") + "\r")
        terminal.wait_for("Second.")
        assert messages() == ["go", "line 1\n/exit\nline 3"]
        terminal.wait_for_pause()
        terminal.type("/exit\r")
        assert terminal.wait_for_end() == 0
        assert not terminal.marks_pastes


def test_a_long_paste_is_shown_as_a_placeholder_and_sent_whole(tmp_path: Path) -> None:
    lines = "\n".join(f"line {number}" for number in range(35))
    with PseudoTerminal({}, *CHAT, str(tmp_path)) as terminal:
        begin(terminal)
        terminal.type("Look: ")
        terminal.type(PASTE.format(lines.replace("\n", "\r")))
        terminal.wait_for("Look: [35 lines pasted]")
        assert "line 12" not in terminal.text
        terminal.type(" fine?\x1b[D\x1b[D!\r")  # Left, Left
        terminal.wait_for("Hello there.")
        assert messages() == [f"Look: {lines} fin!e?"]
        terminal.type("\x1b[A")  # from the history it comes whole
        terminal.wait_for("line 34 fin!e?")


def test_a_placeholder_is_deleted_as_a_whole(tmp_path: Path) -> None:
    with PseudoTerminal({}, *CHAT, str(tmp_path)) as terminal:
        begin(terminal)
        terminal.type("ab")
        terminal.type(PASTE.format("x\r" * 30))
        terminal.wait_for("ab[30 lines pasted]")
        terminal.type("\x7f\x7fc")
        terminal.type(PASTE.format("word " * 500))
        terminal.wait_for("ac[2500 characters pasted]")
        terminal.type("\r")
        terminal.wait_for("Hello there.")
        assert messages() == ["ac" + "word " * 500]


@pytest.mark.parametrize("ending", ["", "\r"])
def test_a_terminal_that_marks_no_pastes(tmp_path: Path, ending: str) -> None:
    with PseudoTerminal({}, *CHAT, str(tmp_path)) as terminal:
        begin(terminal)
        time.sleep(0.2)  # a person has looked at the prompt
        terminal.type("line 1\r\rline 2\r/exit" + ending)
        terminal.wait_for("/exit")
        time.sleep(0.3)
        terminal.type("\r")
        terminal.wait_for("Hello there.")
        assert [message.rstrip("\n") for message in messages()] == ["line 1\n\nline 2\n/exit"]


def test_chinese_in_pieces_and_a_cursor_among_wide_characters(tmp_path: Path) -> None:
    with PseudoTerminal({}, *CHAT, str(tmp_path)) as terminal:
        begin(terminal)
        for byte in "混合专家🎉".encode():
            terminal.send(bytes([byte]))
            time.sleep(0.01)
        terminal.wait_for("混")
        terminal.type("\x1b[D\x1b[D\x1b[D模\x7f型")  # Left three times, a character, Backspace
        terminal.wait_for("型")
        row = terminal.screen.display[terminal.screen.cursor.y]
        # Every wide character takes two columns: the cursor stands behind the inserted one.
        assert terminal.screen.cursor.x == 2 + 2 * len("混合型")
        assert row.replace(" ", "").startswith(">混合型专家")
        terminal.type("\r")
        terminal.wait_for("Hello there.")
        assert messages() == ["混合型专家🎉"]


def test_the_editor(tmp_path: Path) -> None:
    editor = tmp_path / "editor"
    editor.write_text('#!/bin/sh\ncp "$1" "$0.seen"\necho "and more" >> "$1"\n')
    editor.chmod(0o755)
    env = {"EDITOR": str(editor)}
    with PseudoTerminal({}, *CHAT, str(tmp_path), env=env) as terminal:
        begin(terminal)
        terminal.type("first ")
        terminal.type(PASTE.format("x\r" * 30) + "\x18\x05")  # Ctrl-X Ctrl-E
        terminal.wait_for("and more")
        terminal.type("\r")
        terminal.wait_for("Hello there.")
        assert messages() == ["first " + "x\n" * 30 + "and more"]
        assert (tmp_path / "editor.seen").read_text().startswith("first x\nx\n")


def test_vi(tmp_path: Path) -> None:
    with PseudoTerminal({}, *CHAT, str(tmp_path), "--editing", "vi") as terminal:
        begin(terminal)
        terminal.type("word")
        terminal.wait_for("> word")
        terminal.type("\x1b")
        time.sleep(0.7)  # Escape alone, not the beginning of a key
        terminal.type("0xiL\r")
        terminal.wait_for("Hello there.")
        assert messages() == ["Lord"]


def test_history_search_and_suggestions(tmp_path: Path) -> None:
    script = {"replies": ["A.", "B.", "C.", "D.", "E."]}
    with PseudoTerminal(script, *CHAT, str(tmp_path)) as terminal:
        begin(terminal)
        for message, reply in (("the needle", "A."), ("some hay", "B.")):
            terminal.type(message + "\r")
            terminal.wait_for(reply)
            terminal.wait_for("\n>", 2 if reply == "A." else 3)
        terminal.type("\x12needl")  # Ctrl-R
        terminal.wait_for("the needle", count=2)
        terminal.type("\r")
        terminal.type("\r")
        terminal.wait_for("C.")
        terminal.type("some")
        terminal.wait_for("some hay", count=2)  # suggested
        terminal.type("\x1b[C!\r")  # Right
        terminal.wait_for("D.")
        assert messages()[2:] == ["the needle", "some hay!"]


def test_two_chats_share_one_history(tmp_path: Path) -> None:
    with (
        PseudoTerminal({}, *CHAT, str(tmp_path)) as one,
        PseudoTerminal({"replies": ["Second."]}, *CHAT, str(tmp_path)) as two,
    ):
        begin(one)
        begin(two)
        one.type("said in one\r")
        one.wait_for("Hello there.")
        two.type("said in two\r")
        two.wait_for("Second.")
        two.wait_for("\n>", 2)
        two.type("\x1b[A\x1b[A")
        two.wait_for("> said in one")
        sessions = {turn for path in (state_dir() / "sessions").iterdir() for turn in [path.name]}
        assert len(sessions) == 2


def test_completion(tmp_path: Path) -> None:
    (tmp_path / "notes-of-today.txt").write_text("content")
    with PseudoTerminal({}, *CHAT, str(tmp_path)) as terminal:
        begin(terminal)
        terminal.type("/con")
        terminal.wait_for("/continue")  # the menu
        terminal.wait_for("/context")
        terminal.type("te")
        terminal.wait_for_pause()
        terminal.press_until("\t", "> /context")
        terminal.type("\r")
        terminal.wait_for("of 4096 tokens")
        terminal.type(f"/file {tmp_path}/notes")
        terminal.wait_for_pause()
        terminal.press_until("\t", "/notes-of-today.txt")
        terminal.type("\r")
        terminal.wait_for("notes-of-today.txt: 28 tokens")
        terminal.type("/set tempe")
        terminal.wait_for_pause()
        terminal.press_until("\t", "> /set temperature")
        terminal.type(" 0.25\r")
        terminal.wait_for("temperature is now 0.25")
        terminal.type("/set overflow su")
        terminal.press_until("\t", "> /set overflow summarise")


@pytest.mark.slow
def test_the_toolbar_tells_what_matters_as_far_as_there_is_room(tmp_path: Path) -> None:
    with PseudoTerminal({}, *CHAT, str(tmp_path), columns=100) as terminal:
        begin(terminal)
        terminal.type("hi\r")
        terminal.wait_for("context 33/4096 (1 %) · fake · imaginary:0 bf16 · 20.0 tokens/s")
    with PseudoTerminal({}, *CHAT, str(tmp_path), columns=40) as terminal:
        begin(terminal)
        terminal.wait_for("context 0/4096 (0 %) · fake")
        assert "imaginary" not in terminal.text


@pytest.mark.parametrize("columns", [40, pytest.param(200, marks=pytest.mark.slow)])
def test_narrow_and_wide_terminals(tmp_path: Path, columns: int) -> None:
    reply = "这是一个关于混合专家模型的回答。" * 4
    with PseudoTerminal({"replies": [reply]}, *CHAT, str(tmp_path), columns=columns) as terminal:
        begin(terminal)
        question = "混合专家" * 15
        terminal.type(question)
        terminal.type("\r")
        terminal.wait_for("context 143/4096")
        assert reply in terminal.text.replace("\n", "").replace(" ", "")
        assert messages() == [question]


def test_the_welcome_stands_there_once(tmp_path: Path) -> None:
    for expected in (1, 0):
        with PseudoTerminal({}, *CHAT, str(tmp_path)) as terminal:
            begin(terminal)
            assert terminal.text.count("Three things to know") == expected
            assert terminal.text.count("Model License Agreement") == expected
            assert terminal.text.count("takes no responsibility") == expected
            terminal.type("\x04")
            assert terminal.wait_for_end() == 0


def test_going_on_with_a_session(tmp_path: Path) -> None:
    with PseudoTerminal({}, *CHAT, str(tmp_path)) as terminal:
        begin(terminal)
        terminal.type("a question\r")
        terminal.wait_for("Hello there.")
        terminal.type("/exit\r")
        assert terminal.wait_for_end() == 0
        assert f"To go on: xverse chat --resume {newest().id}" in terminal.text
    with PseudoTerminal({}, "chat", "--continue") as terminal:
        terminal.wait_for("Going on with")
        begin(terminal)
        terminal.type("/save my trip\r")
        terminal.wait_for("Saved as")
        terminal.type("/exit\r")
        assert terminal.wait_for_end() == 0
        assert "To go on: xverse chat --resume 'my trip'" in terminal.text
    # The session brings its model along.
    with PseudoTerminal({"replies": ["Again."]}, "chat", "--continue") as terminal:
        terminal.wait_for("Going on with")
        terminal.wait_for("1> a question")
        terminal.wait_for("Hello there.")
        terminal.type("and another\r")
        terminal.wait_for("Again.")
        assert messages() == ["a question", "and another"]


def test_without_saving_nothing_is_left(tmp_path: Path) -> None:
    with PseudoTerminal({}, *CHAT, str(tmp_path), "--no-save") as terminal:
        begin(terminal)
        terminal.type("a secret\r")
        terminal.wait_for("Hello there.")
        terminal.type("\x1b[A")  # in this chat, the history has it
        terminal.wait_for("> a secret", 2)
        terminal.type("\x03/exit\r")
        assert terminal.wait_for_end() == 0
    assert not (state_dir() / "sessions").exists()
    assert (state_dir() / "history").read_bytes() == b""
