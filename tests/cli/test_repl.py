"""Whole chats with the scripted model: what the user reads and what the model is asked."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.conftest import Cli
from tests.cli.fake_engine import FakeEngine
from tests.cli.scripted_chat import Chat, Interrupted
from xverse_cli.chat.commands import COMMANDS, as_message
from xverse_cli.chat.conversation import Turn
from xverse_cli.chat.key_bindings import ClearedInput
from xverse_cli.chat.slash import as_line
from xverse_cli.messages import text, worded_in
from xverse_cli.streams import Streams
from xverse_runtime.errors import GenerationError
from xverse_runtime.types import CancelFlag, GenerationChunk, SamplingParams


def test_a_conversation() -> None:
    chat = Chat("one", "two", engine=FakeEngine(["First.", "Second."]), system="Be brief.")
    assert chat.stdout == "First.\nSecond.\n"
    assert chat.engine.prompts[1] == (
        "system: Be brief.\nuser: one\nassistant: First.\nuser: two\nassistant: "
    )
    assert chat.conversation.turns == [Turn("one", "First."), Turn("two", "Second.")]


def test_blank_lines_are_no_messages() -> None:
    assert Chat("", "  \n").engine.prompts == []


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("hello", "hello"),
        ("/exit", None),
        ("/exit\nand more", "/exit\nand more"),
        ("/exit\n", "/exit\n"),
        ("//etc/hosts", "/etc/hosts"),
        ("//a\nb", "/a\nb"),
        (" /exit", " /exit"),
    ],
)
def test_commands_and_text(line: str, message: str | None) -> None:
    assert as_message(line) == message


@pytest.mark.parametrize("message", ["hello", "/exit", "/exit\nmore", "//x", "// a\nb", "/", " /"])
def test_every_message_has_a_line(message: str) -> None:
    assert as_message(as_line(message)) == message


def test_help_lists_every_command_and_key() -> None:
    shown = Chat("/help").stderr
    for command in COMMANDS:
        assert command.usage in shown
    for key in ("Enter", "Alt-Enter", "Ctrl-C", "Ctrl-D", "//"):
        assert key in shown
    assert max(len(line) for line in shown.splitlines()) < 80


def test_exit_leaves_at_once() -> None:
    assert Chat("/exit", "never said").engine.prompts == []


def test_clear_forgets_turns_but_not_the_system_message() -> None:
    chat = Chat("one", "/clear", "two", system="S")
    assert chat.engine.prompts[1] == "system: S\nuser: two\nassistant: "
    assert "The conversation is forgotten." in chat.stderr


def test_system() -> None:
    chat = Chat("/system", "/system  Be brief. ", "/system", "hi", "/system -", "bye")
    assert chat.engine.prompts[0].startswith("system: Be brief.\nuser: hi")
    assert chat.engine.prompts[1].startswith("user: hi")
    assert chat.stderr.splitlines()[0] == "There is no system message."
    assert "System message: Be brief." in chat.stderr


def test_unknown_commands_suggest_the_nearest() -> None:
    chat = Chat("/hlep", "/zzzzzz", "/RETRY", "/exit now")
    lines = chat.stderr.splitlines()
    assert lines[0] == "Unknown command /hlep. Did you mean /help?"
    assert "write two: //" in lines[1]
    assert lines[2] == "Unknown command /zzzzzz. /help lists the commands."
    assert lines[4] == "There is no message to answer again."
    assert lines[5] == "/exit takes no argument."
    assert chat.engine.prompts == []


def test_what_is_no_command_counts_as_failed_in_a_pipe(cli: Cli) -> None:
    for line in ("/nothing", "/undo 7"):
        result = cli("chat", stdin=f"{line}\n".encode())
        assert result.code == 7, line


def test_an_unknown_command_in_chinese() -> None:
    with worded_in("zh"):
        chat = Chat("/hlep", "/nix")
    assert chat.stderr.splitlines()[::2] == [
        *("未知命令：/hlep（是否想用 /help？）", "未知命令：/nix（/help 列出全部命令。）")
    ]


def test_retry_asks_the_same_again() -> None:
    chat = Chat("one", "/retry", "/retry", engine=FakeEngine(["A.", "B.", "C."]))
    assert chat.engine.prompts == ["user: one\nassistant: "] * 3
    assert chat.conversation.turns == [Turn("one", "C.")]


def test_retry_moves_a_fixed_seed_on() -> None:
    chat = Chat("one", "/retry", "/retry", "two", seed=5)
    assert [params.seed for params in chat.engine.params] == [5, 6, 7, 5]


def test_ctrl_c_at_the_prompt_goes_on() -> None:
    chat = Chat(KeyboardInterrupt, "hello")
    assert "Ctrl-D or type /exit" in chat.stderr
    assert chat.stdout == "Reply.\n"


def test_ctrl_c_while_the_way_out_is_told_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []

    def say(streams: Streams, line: str, *, level: int = 0) -> None:
        said.append(line)
        if len(said) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(Streams, "say", say)
    assert Chat(ClearedInput, "hello").stdout == "Reply.\n"
    assert said[:2] == [text("chat.how_to_leave")] * 2


def test_a_partial_reply_is_kept() -> None:
    chat = Chat("one", "two", engine=Interrupted(["abcdef"]))
    assert chat.stdout == "abc\nabc\n"
    assert "stays in the conversation" in chat.stderr
    assert chat.conversation.turns[0] == Turn("one", "abc", interrupted=True)
    assert chat.engine.prompts[1] == "user: one\nassistant: abc\nuser: two\nassistant: "


def test_a_reply_stopped_before_it_began_gives_the_message_back() -> None:
    engine = Interrupted(["abcdef"])
    engine.after = 0
    chat = Chat("one", engine=engine)
    assert chat.script.prefills == ["", "one"]
    assert chat.conversation.turns == []
    assert chat.stdout == ""


def test_a_retry_stopped_before_it_began_keeps_the_old_reply() -> None:
    engine = Interrupted(["abcdef"])
    engine.after = 0
    chat = Chat("/retry", engine=engine, said=[Turn("one", "A.")])
    assert chat.conversation.turns == [Turn("one", "A.")]
    assert "the conversation is as it was" in chat.stderr
    assert "back at the prompt" not in chat.stderr


class TwiceInterrupted(FakeEngine):
    def _chunks(self, reply: str, prompt_tokens: int, params: SamplingParams, cancel: CancelFlag):  # type: ignore[no-untyped-def]
        yield GenerationChunk("ab")
        raise KeyboardInterrupt


def test_a_second_ctrl_c_does_not_wait_for_the_engine() -> None:
    chat = Chat("one", engine=TwiceInterrupted())
    assert chat.conversation.turns == [Turn("one", "ab", interrupted=True)]


def test_a_failed_turn_loses_nothing() -> None:
    engine = FakeEngine(["Reply."], fail=[GenerationError("sampling.non_finite", step=3)])
    chat = Chat("//one", "//one", "two", engine=engine)
    assert "error: The model's output at token 3 is not a number." in chat.stderr
    assert "--precision fp32" in chat.stderr
    assert chat.script.prefills == ["", "//one", "", ""]
    assert [turn.user for turn in chat.conversation.turns] == ["/one", "two"]


class Broken(FakeEngine):
    def encode_chat(self, messages: object) -> list[int]:
        raise RuntimeError("out of luck")


def test_a_turn_that_fails_unexpectedly_does_not_end_the_chat() -> None:
    chat = Chat("one", "two", engine=Broken())
    assert chat.stderr.count("error: unexpected RuntimeError: out of luck") == 2
    assert chat.script.prefills == ["", "one", "two"]


def test_a_failed_retry_keeps_the_old_reply() -> None:
    engine = FakeEngine(fail=[GenerationError("sampling.non_finite", step=3)])
    chat = Chat("/retry", engine=engine, said=[Turn("one", "A.")])
    assert chat.conversation.turns == [Turn("one", "A.")]


def test_a_message_too_long_is_refused_and_given_back() -> None:
    chat = Chat("x" * 100, "hi", engine=FakeEngine(["Reply."], context_length=60))
    assert "The prompt has 118 tokens; the context holds 60." in chat.stderr
    assert chat.script.prefills[1] == "x" * 100
    assert [turn.user for turn in chat.conversation.turns] == ["hi"]


def test_a_conversation_that_no_longer_fits_drops_the_oldest_aloud() -> None:
    engine = FakeEngine(["Reply."], context_length=100)
    chat = Chat("first", "second", "third", engine=engine, system="S")
    assert "leaving out the oldest 1 of 2 turns (30 tokens)" in chat.stderr
    assert engine.prompts[2] == (
        "system: S\nuser: second\nassistant: Reply.\nuser: third\nassistant: "
    )
    assert [turn.user for turn in chat.conversation.turns] == ["second", "third"]


def test_an_empty_reply_is_said() -> None:
    chat = Chat("one", engine=FakeEngine([""]))
    assert "The model said nothing." in chat.stderr
    assert chat.stdout == "\n"
    assert len(chat.conversation.turns) == 1


# Piped input, through the command itself.


def test_piped_lines_are_messages(cli: Cli) -> None:
    stdin = "one\n\n/system Be brief.\r\n二\nlast".encode()
    result = cli("chat", stdin=stdin, engine=FakeEngine(["A.", "B.", "C."]))
    assert (result.code, result.stdout) == (0, b"A.\nB.\nC.\n")
    assert result.engine.prompts[1] == (
        "system: Be brief.\nuser: one\nassistant: A.\nuser: 二\nassistant: "
    )
    assert "fake" not in result.stderr  # no welcome in a pipe


def test_piped_exit(cli: Cli) -> None:
    result = cli("chat", stdin=b"/exit\none\n")
    assert (result.code, result.engine.prompts) == (0, [])


def test_a_failed_turn_in_a_pipe_shows_in_the_exit_code(cli: Cli) -> None:
    engine = FakeEngine(["Reply."], fail=[GenerationError("sampling.non_finite", step=3)])
    result = cli("chat", stdin=b"one\ntwo\n", engine=engine)
    assert (result.code, result.stdout) == (7, b"Reply.\n")
    assert "token 3" in result.stderr


def test_piped_input_that_is_not_utf8_names_the_byte(cli: Cli) -> None:
    result = cli("chat", stdin=b"one\nb\xffd\n\xe4\xba\x8c\n")
    assert (result.code, result.stdout) == (7, b"Hello there.\nHello there.\n")
    assert "error: line 2: Standard input is not UTF-8 text: byte 5 is wrong." in result.stderr
    assert result.engine.prompts[1].endswith("user: 二\nassistant: ")


def test_errors_of_piped_messages_say_which(cli: Cli) -> None:
    fail = [GenerationError("sampling.non_finite", step=n) for n in (1, 2)]
    result = cli("chat", stdin=b"\n/help\nfirst\n\nsecond\n", engine=FakeEngine(fail=fail))
    assert result.code == 7
    errors = [line for line in result.stderr.splitlines() if line.startswith("error")]
    assert [line[:35] for line in errors] == [
        "error: line 3: The model's output a",
        "error: line 5: The model's output a",
    ]


def test_a_model_without_chat_template_is_warned_of(cli: Cli) -> None:
    assert "no chat template" in cli("chat", engine=FakeEngine(template="raw")).stderr


def test_chat_settings(cli: Cli, tmp_path: Path) -> None:
    result = cli("chat", "--temperature", "0", "--system", "S", stdin=b"hi\n")
    assert result.engine.params[0].temperature == 0
    assert result.engine.prompts[0].startswith("system: S\n")
