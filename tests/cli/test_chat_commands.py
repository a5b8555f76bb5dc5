"""Every slash command, as the user sees it and as the model does."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.fake_engine import FakeEngine
from tests.cli.scripted_chat import Chat, Interrupted
from xverse_cli.chat.clipboard import copy_text
from xverse_cli.chat.code_blocks import code_blocks
from xverse_cli.chat.commands import COMMANDS
from xverse_cli.chat.conversation import Made, Turn
from xverse_cli.chat.sessions import folder
from xverse_cli.chat.sessions.folder import latest_session, saved_sessions
from xverse_cli.chat.statistics import bars
from xverse_cli.host import Host
from xverse_cli.messages import text
from xverse_cli.streams import Streams
from xverse_runtime.errors import DeviceError, GenerationError
from xverse_runtime.offload.statistics import OffloadStatistics
from xverse_runtime.prediction import Prediction
from xverse_runtime.types import (
    CancelFlag,
    EngineStatistics,
    GenerationChunk,
    LoadProgress,
    SamplingParams,
)

ISSUE = [
    "/help", "/retry", "/edit", "/undo", "/continue", "/system", "/set", "/show", "/stats",
    "/context", "/file", "/copy", "/save", "/load", "/sessions", "/clear", "/model", "/export",
    "/exit", "/replay",
]  # fmt: skip


def test_the_commands_are_there_each_with_a_line() -> None:
    assert sorted(command.name for command in COMMANDS) == sorted(ISSUE)
    for command in COMMANDS:
        assert "\n" not in text(command.help)
        assert len(text(command.help)) < 60


@pytest.mark.parametrize("name", ISSUE)
def test_every_command_can_be_given_before_anything_was_said(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # where an export goes
    chat = Chat(name, "hello")
    assert "Unknown command" not in chat.stderr
    assert "error" not in chat.stderr
    assert chat.stdout == ("" if name == "/exit" else "Reply.\n")


@pytest.mark.parametrize("name", ISSUE)
def test_a_misspelt_command_is_recognised(name: str) -> None:
    misspelt = name[:-2] + name[-1]
    assert f"Did you mean {name}?" in Chat(misspelt).stderr


# Taking back, changing, going on.


def test_undo_takes_the_last_turn_back() -> None:
    chat = Chat("one", "two", "/undo", "three", "/undo", "/undo", "/undo")
    assert chat.engine.prompts[2] == "user: one\nassistant: Reply.\nuser: three\nassistant: "
    assert chat.conversation.turns == []
    assert "There is nothing to take back." in chat.stderr


def test_edit_puts_the_message_at_the_prompt_and_replaces_the_turn() -> None:
    chat = Chat("one", "/edit", "one!", "two", engine=FakeEngine(["A.", "B.", "C."]))
    assert chat.script.prefills == ["", "", "one", "", ""]
    assert chat.engine.prompts[1] == "user: one!\nassistant: "
    assert chat.conversation.turns == [Turn("one!", "B."), Turn("two", "C.")]


def test_edit_of_an_earlier_message_says_what_it_replaces() -> None:
    chat = Chat("one", "two", "three", "/edit 2", "zwei", saves=True)
    assert chat.script.prefills[4] == "two"
    assert "replaces turns 2 to 3" in chat.stderr
    assert [turn.user for turn in chat.conversation.turns] == ["one", "zwei"]
    assert chat.engine.prompts[3] == "user: one\nassistant: Reply.\nuser: zwei\nassistant: "
    assert latest_session().conversation == chat.conversation


def test_a_message_that_looks_like_a_command_stays_one_when_edited() -> None:
    chat = Chat("//exit", "/edit", "//exit!")
    assert chat.script.prefills[2] == "//exit"
    assert chat.conversation.turns == [Turn("/exit!", "Reply.")]


def test_an_edit_that_is_given_up_changes_nothing() -> None:
    chat = Chat("one", "/edit", KeyboardInterrupt, "two")
    assert [turn.user for turn in chat.conversation.turns] == ["one", "two"]
    chat = Chat("one", "/edit", "", "two")
    assert [turn.user for turn in chat.conversation.turns] == ["one", "two"]


def test_a_failed_edit_changes_nothing_and_can_be_sent_again() -> None:
    engine = FakeEngine(["A."], fail=[])
    chat = Chat("one", "two", "/edit 1", "uno", "uno", engine=_failing_at(engine, 3))
    assert chat.script.prefills[4] == "uno"
    assert [turn.user for turn in chat.conversation.turns] == ["uno"]


def _failing_at(engine: FakeEngine, number: int) -> FakeEngine:
    generate, calls = engine.generate, []

    def fail(*args: Any) -> Any:
        calls.append(args)
        if len(calls) == number:
            raise GenerationError("sampling.non_finite", step=3)
        return generate(*args)

    engine.generate = fail  # type: ignore[method-assign]
    return engine


@pytest.mark.parametrize("number", ["0", "3", "x", "-1"])
def test_a_turn_that_is_not_there(number: str) -> None:
    chat = Chat("one", "two", f"/edit {number}", f"/show {number}", f"/replay {number}")
    assert chat.stderr.count(f"There is no turn {number}; the conversation has 2.") == 3
    assert len(chat.conversation.turns) == 2


def test_continue_goes_on_from_what_was_said() -> None:
    chat = Chat("one", "/continue", "two", engine=Interrupted(["abcdef", "de", "X"]), saves=True)
    prompts = chat.engine.prompts
    assert prompts[1] == "user: one\nassistant: abc"
    # No mark of the interruption, and one reply of both parts.
    assert prompts[2] == "user: one\nassistant: abcde\nuser: two\nassistant: "
    assert chat.conversation.turns[0] == Turn("one", "abcde", interrupted=False)
    assert latest_session().conversation == chat.conversation
    made = latest_session().conversation.turns[0].made
    assert made is not None
    assert (made.continued, made.completion_tokens) == (True, 5)


def test_a_reply_that_reached_its_limit_can_be_gone_on_with() -> None:
    chat = Chat("/set max_tokens 4", "one", "/continue", engine=FakeEngine(["abcdefgh", "ef"]))
    assert chat.conversation.turns == [Turn("one", "abcdef")]


def test_a_whole_reply_is_not_gone_on_with() -> None:
    chat = Chat("one", "/continue")
    assert "The last reply is whole." in chat.stderr
    assert len(chat.engine.prompts) == 1


def test_retry_and_undo_are_saved() -> None:
    engine = FakeEngine(["A.", "B.", "C."])
    chat = Chat("one", "/retry", "two", "/undo", engine=engine, saves=True)
    assert latest_session().conversation.turns == [Turn("one", "B.")] == chat.conversation.turns


def test_clear_begins_a_session_of_its_own() -> None:
    chat = Chat("one", "/clear", "two", system="S", saves=True)
    sessions = [*saved_sessions()]
    assert {session.title for session in sessions} == {"one", "two"}
    assert all(session.conversation.system == "S" for session in sessions)
    (old,) = (session for session in sessions if session.title == "one")
    assert f"/load {old.id} brings the one before back" in chat.stderr


# Replay.


def test_replay_makes_the_same_reply_and_keeps_nothing_of_it() -> None:
    chat = Chat("/set temperature 0.9", "one", "/set temperature 0.1", "/replay", seed=5)
    assert "The same reply (seed 5)." in chat.stderr
    assert chat.engine.prompts[0] == chat.engine.prompts[1]
    assert chat.engine.params[0] == chat.engine.params[1]
    assert len(chat.conversation.turns) == 1


def test_replay_of_a_saved_session_uses_what_was_recorded() -> None:
    Chat("zero", "/set top_p 0.5", "one", "/system S", "two", saves=True)
    chat = Chat("/replay 2", "/replay 3", "/replay", going_on=latest_session())
    assert chat.stderr.count("The same reply (seed 7).") == 3
    assert "not the one of then" not in chat.stderr
    assert chat.engine.prompts[0] == "user: zero\nassistant: Reply.\nuser: one\nassistant: "
    assert chat.engine.prompts[1].startswith("system: S\nuser: zero\n")
    assert chat.engine.params[0].top_p == 0.5
    assert chat.engine.params[0].seed == 7  # which was drawn


def test_replay_says_what_differs() -> None:
    Chat("one", saves=True)
    engine = FakeEngine(["Other."], model_name="another", template="raw")
    engine.encode_chat = lambda messages: [1, 2, 3]  # type: ignore[method-assign]
    chat = Chat("/replay", engine=engine, going_on=latest_session())
    assert "It was made with fake; now it is another." in chat.stderr
    assert "It was made with human-assistant; now it is raw." in chat.stderr
    assert "The prompt is not the one of then" in chat.stderr
    assert "Another reply than then." in chat.stderr


def test_an_interrupted_reply_is_replayed_as_far_as_it_came() -> None:
    Chat("one", engine=Interrupted(["abcdef"]), saves=True)
    chat = Chat("/replay", engine=FakeEngine(["abcdef"]), going_on=latest_session())
    assert chat.engine.params[0].max_new_tokens == 3
    assert "The same reply" in chat.stderr


# Settings and models.


def test_set_shows_and_changes_settings() -> None:
    chat = Chat("/set", "/set temperature", "/set top-k 3", "/set top_k=4", "hi", "/set top_k -")
    assert "  temperature = 1.0" in chat.stderr
    assert "  seed = random" in chat.stderr
    assert "top_k is now 4." in chat.stderr
    assert chat.engine.params[0].top_k == 4
    assert "top_k is now 30." in chat.stderr  # the model's own


def test_set_refuses_what_makes_no_sense() -> None:
    chat = Chat("/set temperatur 1", "/set top_p 2", "/set model x", "hi")
    assert "temperatur is nothing to set here. Known: temperature." in chat.stderr
    assert 'top_p: "2" is not a number above 0, at most 1' in chat.stderr
    assert "model is nothing to set here." in chat.stderr
    assert chat.stdout == "Reply.\n"


def models_of(engines: dict[str, Any]) -> Any:
    """A host whose models are directories with these names."""

    def host(streams: Streams) -> Host:
        def load(found: Any, settings: Any, *_: Any) -> Any:
            engine = engines[Path(settings.model).name]
            if isinstance(engine, Exception):
                raise engine
            return engine

        return Host(streams, {}, load)

    return host


def test_model_changes_the_model_and_keeps_the_conversation(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = FakeEngine(["Other."], model_name="other")
    chat = Chat(
        "one", f"/model {tmp_path}/other", "two", "/model",
        host=models_of({"other": other}), saves=True,
    )  # fmt: skip
    assert chat.stdout == "Reply.\nOther.\n"
    assert other.prompts[0] == "user: one\nassistant: Reply.\nuser: two\nassistant: "
    assert other.params[0].temperature == 0.5  # its own
    assert "other on imaginary:0, bf16, context 4096 tokens" in chat.stderr
    saved = latest_session()
    assert (saved.model, saved.asked_for) == ("other", f"{tmp_path}/other")
    assert [turn.made and turn.made.model for turn in saved.conversation.turns] == ["fake", "other"]


def test_a_model_that_cannot_be_loaded_leaves_the_one_before(tmp_path: Path) -> None:
    for name in ("good", "bad"):
        (tmp_path / name).mkdir()
    good = FakeEngine(["Good."], model_name="good")
    engines = {"good": good, "bad": DeviceError("device.unavailable", device="cuda", reason="none")}
    chat = Chat(
        f"/model {tmp_path}/good", f"/model {tmp_path}/bad", "/model nowhere/to/be", "hi",
        host=models_of(engines),
    )  # fmt: skip
    assert f"Going back to {tmp_path}/good." in chat.stderr
    assert "There is no model" in chat.stderr
    assert chat.stdout == "Good.\n"


# Looking.


def test_show_prints_the_conversation() -> None:
    said = [Turn("one\nmore", "A.\n"), Turn("two", "B", interrupted=True)]
    chat = Chat("/show", "/show 2", said=said, system="S")
    assert chat.stderr.splitlines() == [
        "System message: S", "1> one", "more", "A.", "2> two", "B", "[interrupted]",
        "2> two", "B", "[interrupted]",
    ]  # fmt: skip


class Telling(FakeEngine):
    def statistics(self) -> EngineStatistics:
        memory = (("weights", 2**30), ("cache", 2**20), ("kept", 3 * 2**20))
        return EngineStatistics(memory, ((8, 4, 0, 4), (8, 4, 0, 4)))

    @property
    def offload_statistics(self) -> OffloadStatistics:  # type: ignore[override]
        return OffloadStatistics(
            tokens=10,
            hits=150,
            on_cpu=45,
            over_link=5,
            critical_bytes=2**20,
            background_bytes=3 * 2**20,
            prefetched=8,
            prefetched_used=5,
            prompt_bytes=2**30,
            choice_s=0.1,
            cpu_s=0.05,
            link_s=0.0125,
            coordination_s=0.02,
            disk_s=2.34,
        )

    def forecast(self, tokens: int) -> Prediction:  # type: ignore[override]
        return Prediction(25.0, 1.0, tokens, 10.0, 0.81, 0.0)


def test_stats() -> None:
    shown = Chat("/stats", "hi", "/stats", engine=Telling(["Reply."])).stderr
    assert "No reply yet." in shown
    for line in (
        "fake on imaginary:0, bf16",
        "context: 27 of 4096 tokens",
        "time to the first token: 0.25 s",
        "prefill: 100.0 tokens/s (17 computed, 3 cached)",
        "decode: 20.0 tokens/s (6 tokens)",
        "predicted 25, measured 20 tokens/s; hit rate predicted 0.81, measured 0.75",
        "experts of replies: 75.0 % were on the GPU, 22.5 % computed by the CPU, 2.5 % sent while a"
        " token waited",
        "sent to the GPU: 1.0 MiB while a token waited, 3.0 MiB meanwhile, 1.0 GiB for prompts",
        "of a token: GPU until experts are chosen 10.00 ms, CPU 5.00 ms, link 1.25 ms, decisions"
        " 2.00 ms",
        "passes that read experts from the disk took 2.3 s",
        "experts sent to the GPU a layer ahead: 8, 62 % of them used",
        "memory, weights: 1.0 GiB",
        "memory, keys and values: 1.0 MiB",
        "memory, caches of other conversations: 3.0 MiB",
        "experts, prompts so far: █▄ ▄",
        "busiest 2.00 times the mean, idlest 0.00 (2 layers together)",
    ):
        assert line in shown.splitlines()


def test_stats_of_an_engine_that_tells_nothing() -> None:
    shown = Chat("hi", "/stats").stderr
    assert "decode: 20.0 tokens/s" in shown
    assert "memory" not in shown
    assert "experts" not in shown


def test_the_toolbar_tells_of_kernels_that_are_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    from xverse_cli.chat.loading import Models
    from xverse_cli.chat.toolbar import Toolbar

    chat, toolbar = Chat("hi"), Toolbar()
    lines = []
    for progress in (LoadProgress(1, 2), LoadProgress(2, 2, 12, 40)):
        monkeypatch.setattr(Models, "loading", progress)
        toolbar.update(chat.repl)
        lines.append(toolbar.line(200))
    assert "50 % · type ahead" in lines[0]
    assert "100 % · compiling kernels 12/40 · type ahead" in lines[1]


def test_the_toolbar_tells_of_hits() -> None:
    from xverse_cli.chat.toolbar import Toolbar

    chat, toolbar = Chat("hi", engine=Telling(["Reply."])), Toolbar()
    toolbar.update(chat.repl)
    assert toolbar.line(200).endswith("20.0 tokens/s · 75 % of experts on the GPU")
    assert toolbar.line(30) == "context 27/4096 (1 %) · fake"


def test_bars() -> None:
    assert bars([0, 1, 50, 99, 100]) == " ▁▄██"
    assert bars([1, 2, 3, 4, 5, 6, 7, 8]) == "▁▂▃▄▅▆▇█"


def test_context() -> None:
    chat = Chat("/context", "hi", "/context", system="S" * 10)
    first, second = chat.stderr.split("(/set overflow).\n")[:2]
    assert "  system message: 19" in first
    assert "46 of 4096 tokens (1 %)" in second
    assert "  turn 1: 27  hi" in second


# Files, the clipboard, exports, sessions.


def test_file_shows_its_tokens_and_goes_with_the_next_message(tmp_path: Path) -> None:
    path = tmp_path / "my notes.txt"
    path.write_text("Line 1\n中文\n", encoding="utf-8")
    chat = Chat(f"/file {path}", "/file", "Sum up.", "And?")
    assert f"{path}: 24 tokens, beside 0 in use of 4096." in chat.stderr
    assert chat.stderr.count("24 tokens") == 2
    assert chat.engine.prompts[0] == ("user: my notes.txt:\n\nLine 1\n中文\n\nSum up.\nassistant: ")
    assert chat.engine.prompts[1].endswith("user: And?\nassistant: ")


def test_file_refuses_what_cannot_be_sent(tmp_path: Path) -> None:
    (tmp_path / "long").write_text("x" * 300)
    (tmp_path / "bad").write_bytes(b"\xff\xfe")
    commands = [f"/file {tmp_path}/{name}" for name in ("none", "bad", "long")]
    chat = Chat(*commands, "/file", "hi", engine=FakeEngine(["Reply."], context_length=200))
    assert "No such file or directory" in chat.stderr
    assert "is not UTF-8 text" in chat.stderr
    assert "long has 307 tokens; the context holds 200. It is not attached." in chat.stderr
    assert "No file is attached." in chat.stderr
    assert chat.engine.prompts == ["user: hi\nassistant: "]


def test_a_file_stays_attached_when_the_turn_fails(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("content")
    engine = FakeEngine(["Reply."], fail=[GenerationError("sampling.non_finite", step=3)])
    chat = Chat(f"/file {tmp_path}/a", "one", "one", engine=engine)
    assert chat.script.prefills[2] == "one"
    assert engine.prompts == ["user: a:\n\ncontent\n\none\nassistant: "]
    chat = Chat(f"/file {tmp_path}/a", "/file -", "one")
    assert chat.engine.prompts == ["user: one\nassistant: "]


CODE = "See:\n```python\nx = 1\n\ny = 2\n```\nand\n~~~~\n```\n~~~~\nand\n```\nnever closed"


def test_code_blocks() -> None:
    assert code_blocks(CODE) == ["x = 1\n\ny = 2", "```", "never closed"]
    assert code_blocks("none ```here```") == []


class Clipboard:
    """A host at a terminal, and what came to its clipboard."""

    def __init__(self, **environ: str) -> None:
        self.environ = {"TERM": "xterm", **environ}

    def __call__(self, streams: Streams) -> Host:
        return Host(streams, self.environ)


@pytest.fixture
def copied(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    result: list[str] = []

    def copy(content: str, host: Host) -> str:
        result.append(content)
        return "Copied."

    monkeypatch.setattr("xverse_cli.chat.commands.keeping.copy_text", copy)
    return result


def test_copy(copied: list[str]) -> None:
    chat = Chat(
        "/copy", "/copy code", "/copy code 2", "/copy code 4", "/copy x",
        said=[Turn("hi", CODE)],
    )  # fmt: skip
    assert Chat("/copy").stderr == "There is no reply to copy.\n"
    assert copied == [CODE, "x = 1\n\ny = 2", "```"]
    assert "There is no code block 4 in the last reply; it has: 3." in chat.stderr
    assert "Write /copy" in chat.stderr


def test_the_clipboard_of_a_terminal() -> None:
    from tests.cli.conftest import memory_stream, written

    streams = Streams(None, memory_stream(), memory_stream(terminal=True))
    host = Host(streams, {"TERM": "xterm"})
    assert "Copied 2 characters" in copy_text("中文", host)
    assert written(streams.stderr) == b"\x1b]52;c;" + base64.b64encode("中文".encode()) + b"\x07"
    assert "Too long" in copy_text("x" * 80_000, host)
    assert "no clipboard" in copy_text("x", Host(streams, {"TERM": "dumb"}))


def test_the_clipboard_of_a_desktop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.cli.conftest import memory_stream

    program = tmp_path / "xclip"
    program.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/how\ncat > {tmp_path}/what\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    streams = Streams(None, memory_stream(), memory_stream())
    assert copy_text("中文", Host(streams, {"DISPLAY": ":0"})) == "Copied 2 characters (xclip)."
    assert (tmp_path / "what").read_text(encoding="utf-8") == "中文"
    assert (tmp_path / "how").read_text() == "-selection clipboard\n"


def test_export(tmp_path: Path) -> None:
    Chat(
        "one", f"/export {tmp_path}/a.md", f"/export {tmp_path}/a.json",
        system="S", engine=FakeEngine(["**A** 中文\n"]),
    )  # fmt: skip
    document = (tmp_path / "a.md").read_text(encoding="utf-8")
    assert document.endswith("## System\n\nS\n\n## User\n\none\n\n## Assistant\n\n**A** 中文\n")
    value = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
    assert value["system"] == "S"
    (turn,) = value["turns"]
    assert (turn["user"], turn["assistant"], turn["made"]["settings"]["seed"]) == (
        "one",
        "**A** 中文\n",
        7,
    )
    assert (tmp_path / "a.md").stat().st_mode & 0o077 == 0


def test_export_writes_over_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("mine")
    chat = Chat("one", f"/export {tmp_path}/a.md", f"/export {tmp_path}/no/such/a.md")
    assert "is there already; nothing was written" in chat.stderr
    assert "cannot be written: No such file or directory" in chat.stderr
    assert (tmp_path / "a.md").read_text() == "mine"


def test_save_says_nothing_else_where_it_fails() -> None:
    folder.state_dir().parent.mkdir(parents=True)
    folder.state_dir().write_text("in the way", encoding="utf-8")
    chat = Chat("one", "/save trip", "/save", saves=True)
    assert chat.stderr.count("NOT SAVED") == 4  # the turn, both commands and the end
    assert "Saved as" not in chat.stderr
    assert "nothing to save" not in chat.stderr


def test_save_names_the_session_and_load_switches() -> None:
    Chat("one", "/save trip", saves=True)
    chat = Chat("two", "/sessions", "/load trip", "three", "/load trip", "/load zzz", saves=True)
    assert "trip" in chat.stderr
    assert "Going on with" in chat.stderr
    assert "is the session you are in" in chat.stderr
    assert "There is no saved session zzz." in chat.stderr
    titles = {session.title: session.conversation for session in saved_sessions()}
    assert [turn.user for turn in titles["trip"].turns] == ["one", "three"]
    assert [turn.user for turn in titles["two"].turns] == ["two"]
    assert chat.engine.prompts[1] == "user: one\nassistant: Reply.\nuser: three\nassistant: "


def test_load_tells_of_another_model() -> None:
    Chat("one", "/save trip", saves=True, model="./other")
    assert "another model: /model ./other" in Chat("/load trip", saves=True).stderr
    assert "another model" not in Chat("/load trip", saves=True, model="./other").stderr


def test_save_begins_to_save_what_was_not_saved() -> None:
    chat = Chat("one", "/save", "two")
    assert latest_session().conversation == chat.conversation
    assert "Saved as" in chat.stderr


def test_the_system_message_is_saved() -> None:
    Chat("one", "/system New.", "two", "/system -", saves=True, system="Old.")
    assert latest_session().conversation.system is None
    turns = latest_session().conversation.turns
    assert [turn.made and turn.made.system for turn in turns] == ["Old.", "New."]


class Deaf(FakeEngine):
    def _chunks(self, reply: str, prompt_tokens: int, params: SamplingParams, cancel: CancelFlag):  # type: ignore[no-untyped-def]
        yield GenerationChunk("ab")
        raise OSError(5, "Input/output error")


def test_a_terminal_that_is_gone_keeps_the_partial_reply() -> None:
    with pytest.raises(OSError, match="Input/output"):
        Chat("one", engine=Deaf(), saves=True)
    saved = latest_session()
    assert saved.conversation.turns == [Turn("one", "ab", interrupted=True)]
    assert saved.unsent == ""


def test_made_is_no_part_of_what_was_said() -> None:
    made = Made("m", "t", {}, 1, "d", 1, "stop")
    assert Turn("a", "b", made=made) == Turn("a", "b")


@pytest.mark.parametrize("width", [79, 80, 60, 40])
def test_what_a_command_says_is_broken_between_words(
    width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    reply = "word " * 30 + "end"
    monkeypatch.setattr("xverse_cli.streams.is_terminal", lambda stream: stream is not None)
    shown = Chat("hello", "/context", "/stats", "/help").stderr
    assert all(len(line) <= width for line in shown.splitlines())
    assert "(/set" in shown
    assert "\n.\n" not in shown  # the end of a sentence that just did not fit
    # What was written in the chat is shown as it was written.
    assert f"{reply}\n" in Chat("/show", said=[Turn("hello", reply)]).stderr
