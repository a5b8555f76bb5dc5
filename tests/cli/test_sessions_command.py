"""`xverse sessions`, and the options of `xverse chat` that go with it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Cli
from tests.cli.fake_engine import FakeEngine
from tests.cli.scripted_chat import Chat
from xverse_cli.chat.sessions.folder import latest_session, saved_sessions, session_paths
from xverse_cli.settings import state_dir


@pytest.fixture
def two() -> list[str]:
    """The ids of two sessions, the later one first."""
    Chat("one\nmore", engine=FakeEngine(["First."]), saves=True)
    Chat("two", "/save trip", "three", saves=True, system="S")
    return [saved.id for saved in saved_sessions()]


def test_list(cli: Cli, two: list[str]) -> None:
    lines = cli("sessions", "list").stdout.decode().splitlines()
    assert lines[0].split() == ["SESSION", "LAST", "TURN", "TURNS", "MODEL", "TITLE"]
    assert [line.split()[0] for line in lines[1:]] == two
    assert lines[1].endswith("trip")
    assert lines[2].endswith("one more")
    first, second = cli("sessions", "list", "--json").json
    assert (first["session"], first["name"], first["turns"]) == (two[0], "trip", 2)
    assert (second["title"], second["turns"], second["damaged_lines"]) == ("one more", 1, 0)


def test_without_sessions(cli: Cli) -> None:
    result = cli("sessions", "list")
    assert (result.code, result.stdout) == (0, b"")
    assert "There are no saved sessions." in result.stderr
    assert cli("sessions", "list", "--json").json == []
    for arguments in (("sessions", "show", "x"), ("chat", "--resume", "x")):
        result = cli(*arguments)
        assert result.code == 2
        assert "There is no saved session x." in result.stderr
    assert cli("chat", "--continue").code == 2


def test_what_cannot_be_read_is_said(cli: Cli, two: list[str]) -> None:
    path = session_paths()[0].with_name("later.jsonl")
    path.write_text('{"type": "session", "version": 9, "time": ""}\n')
    result = cli("sessions", "list")
    assert result.stdout.count(b"\n") == 3
    assert "later.jsonl was written by a later version of xverse (format 9)" in result.stderr


def test_show_and_export(cli: Cli, two: list[str], tmp_path: Path) -> None:
    shown = cli("sessions", "show", "trip").stdout.decode()
    assert shown.startswith("# trip\n")
    assert "## User\n\nthree\n\n## Assistant\n\nReply.\n" in shown
    exported = cli("sessions", "export", two[1], "--format", "json").json
    assert [turn["user"] for turn in exported["turns"]] == ["one\nmore"]
    path = tmp_path / "out.json"
    assert cli("sessions", "export", "trip", "-o", str(path)).code == 0
    assert json.loads(path.read_bytes())["system"] == "S"
    result = cli("sessions", "export", "trip", "-o", str(path))
    assert result.code == 2
    assert "is there already" in result.stderr


def test_a_terminal_is_shown_nothing_that_steers_it(cli: Cli) -> None:
    Chat("one", engine=FakeEngine(["\x1b]0;title\x07bad"]), saves=True)
    assert b"\x1b" in cli("sessions", "show", latest_session().id).stdout
    assert b"\x1b" not in cli("sessions", "show", latest_session().id, terminal="o").stdout


def test_rm_asks(cli: Cli, two: list[str]) -> None:
    result = cli("sessions", "rm", "trip")
    assert result.code == 2
    assert "Nobody can be asked" in result.stderr
    kept = cli("sessions", "rm", "trip", stdin=b"n\n", terminal="ie")
    assert "Nothing was deleted." in kept.stderr
    assert len(session_paths()) == 2
    gone = cli("sessions", "rm", "trip", stdin=b"y\n", terminal="ie")
    assert f"Deleted: {two[0]}" in gone.stderr
    assert [path.stem for path in session_paths()] == [two[1]]
    assert cli("sessions", "rm").code == 2
    assert cli("sessions", "rm", "--all", "--yes").code == 0
    assert session_paths() == []


def test_piped_chats_are_saved_when_asked_to_be(cli: Cli) -> None:
    cli("chat", stdin=b"one\n")
    assert session_paths() == []
    cli("chat", "--save", stdin=b"one\n")
    assert [turn.user for turn in latest_session().conversation.turns] == ["one"]
    with latest_session().path.open("ab") as file:
        file.write(b"damage\n")
    result = cli("chat", "--continue", stdin=b"two\n")
    assert (
        result.stderr == "Lines of its file that could not be read: 1. Everything else is here.\n"
    )
    cli("chat", "--resume", latest_session().id[-6:], stdin=b"three\n")
    assert [turn.user for turn in latest_session().conversation.turns] == ["one", "two", "three"]
    cli("chat", "--continue", "--no-save", stdin=b"four\n")
    assert len(latest_session().conversation.turns) == 3
    assert cli("chat", "--continue", "--resume", "x").code == 2


def test_a_resumed_session_keeps_its_system_message_unless_told_otherwise(cli: Cli) -> None:
    cli("chat", "--save", "--system", "Old.", stdin=b"one\n")
    result = cli("chat", "--continue", stdin=b"two\n", env={"XVERSE_SYSTEM": "Mine."})
    assert result.engine.prompts[0].startswith("system: Old.\nuser: one\n")
    result = cli("chat", "--continue", "--system", "New.", stdin=b"three\n")
    assert result.engine.prompts[0].startswith("system: New.\nuser: one\n")
    assert latest_session().conversation.system == "New."


def test_overflow_is_a_setting(cli: Cli) -> None:
    engine = FakeEngine(["Reply." * 3], context_length=70)
    result = cli("chat", "--overflow", "error", stdin=b"one\ntwo\n", engine=engine)
    assert result.code == 7
    assert "the conversation has" in result.stderr
    assert "not one of trim, error, summarise" in cli("chat", "--overflow", "drop").stderr


def test_a_conversation_that_is_not_saved_is_said_even_when_quiet(cli: Cli) -> None:
    state_dir().parent.mkdir(parents=True)
    state_dir().write_text("in the way")
    for quiet in ([], ["-q"]):
        result = cli("chat", "--save", *quiet, stdin=b"one\n")
        assert (result.code, result.stdout) == (0, b"Hello there.\n")
        assert "NOT SAVED" in result.stderr


def test_without_a_command_the_sessions_are_listed(cli: Cli, two: list[str]) -> None:
    result = cli("sessions")
    assert (result.code, result.stderr) == (0, "")
    assert result.stdout == cli("sessions", "list").stdout
