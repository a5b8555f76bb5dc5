"""A conversation that no longer fits: what goes, what is said first, what stays."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cli.fake_engine import FakeEngine
from tests.cli.scripted_chat import Chat
from xverse_cli.chat.conversation import Turn
from xverse_cli.chat.sessions.folder import latest_session
from xverse_cli.chat.summary import HEADING, REQUEST
from xverse_runtime.types import CancelFlag, GenerationChunk, SamplingParams

SAID = [Turn(f"message {number} of some length", "Reply.") for number in range(4)]


def tight(*replies: str, room: int = 200) -> FakeEngine:
    return FakeEngine(replies or ["Reply."], context_length=room)


def test_trim_says_which_turns_go_and_how_many_tokens_before_they_do() -> None:
    chat = Chat("the next one", engine=tight(), said=SAID, saves=True)
    warning = chat.stderr.splitlines()[0]
    assert warning == (
        "The conversation no longer fits: leaving out the oldest 2 of 4 turns (98 tokens):"
        ' 1 "message 0 of some length", 2 "message 1 of some length".'
    )
    assert "message 1" not in chat.engine.prompts[0]
    assert "message 2" in chat.engine.prompts[0]
    # The conversation still has them: on the screen, in the file, in an export.
    assert [turn.user for turn in chat.conversation.all_turns[:4]] == [turn.user for turn in SAID]
    made = latest_session().conversation.turns[-1].made
    assert made is not None
    assert made.left_out == 2


def test_what_was_left_out_is_shown_as_such() -> None:
    chat = Chat("the next one", "/show", "/context", engine=tight(), said=SAID)
    shown = chat.stderr.splitlines()
    assert shown.index("[no longer in the context: turns 1 to 2, above]") == 1 + 2 * 2
    assert "  left out: the oldest 2 turns" in shown
    assert "  turn 3: 49  message 2 of some length" in shown


def test_many_turns_are_named_shortly() -> None:
    said = [Turn(f"m{number}", "R") for number in range(30)]
    chat = Chat("x" * 150, engine=tight(), said=said)
    assert '1 "m0", 2 "m1", 3 "m2", 4 "m3", …, ' in chat.stderr


def test_the_system_message_never_goes() -> None:
    chat = Chat("x" * 120, engine=tight(), said=SAID, system="SYSTEM")
    assert chat.engine.prompts[0] == f"system: SYSTEM\nuser: {'x' * 120}\nassistant: "


def test_error_refuses_and_gives_the_message_back() -> None:
    chat = Chat("the next one", "/undo", "/undo", "go on", engine=tight(), said=SAID,
                overflow="error")  # fmt: skip
    assert "the conversation has 226 tokens; the context holds 200" in chat.stderr
    assert chat.script.prefills[1] == "the next one"
    assert len(chat.engine.prompts) == 1
    assert "message 0" in chat.engine.prompts[0]


def test_overflow_can_be_set_in_the_chat() -> None:
    chat = Chat("/set overflow error", "the next one", "/set overflow", engine=tight(), said=SAID)
    assert "overflow is now error." in chat.stderr
    assert "the conversation has 226 tokens" in chat.stderr
    assert chat.engine.prompts == []


def test_a_message_too_long_is_refused_by_every_policy() -> None:
    for policy in ("trim", "error", "summarise"):
        chat = Chat("x" * 300, engine=tight(), said=SAID, overflow=policy)
        assert "The prompt has 318 tokens; the context holds 200." in chat.stderr
        assert chat.script.prefills[1] == "x" * 300
        assert chat.conversation.turns == SAID
        assert chat.engine.prompts == []


def test_summarise_asks_the_model_and_goes_on_with_what_it_says() -> None:
    engine = tight("They spoke of A.", "Reply.", room=360)
    said = [Turn(f"message {number} of some length", "Reply." * 3) for number in range(5)]
    chat = Chat("the next one", "/replay", engine=engine, said=said, system="S",
                overflow="summarise", saves=True)  # fmt: skip
    asked, answered = engine.prompts[:2]
    assert asked.startswith("system: S\nuser: message 0")
    assert asked.endswith(f"user: {REQUEST}\nassistant: ")
    assert engine.params[0].temperature == 0
    summary = f"{HEADING} They spoke of A."
    assert answered.startswith(f"system: S\n\n{summary}\nuser: message 2")
    assert 'sums up the oldest 2 of 5 turns: 1 "message 0' in chat.stderr
    assert summary in chat.stderr
    assert "leaving out" not in chat.stderr
    assert chat.conversation.summary == summary
    assert chat.conversation.turns[-1] == Turn("the next one", "Reply.")
    assert latest_session().conversation.summary == summary
    assert engine.prompts[2] == answered  # the replay
    assert "The same reply" in chat.stderr


def test_a_summary_that_the_model_does_not_write_is_said_and_turns_are_left_out() -> None:
    said = [Turn(f"message {number} of some length", "Reply." * 3) for number in range(5)]
    engine = tight(" ", "Reply.", room=360)
    chat = Chat("the next one", engine=engine, said=said, overflow="summarise")
    assert chat.stderr.index("There is no summary of them") < chat.stderr.index(
        "leaving out the oldest 1 of 5 turns"
    )
    assert chat.conversation.summary is None


def test_turns_too_long_for_a_summary_are_left_out() -> None:
    chat = Chat("the next one", engine=tight(), said=SAID, overflow="summarise")
    assert "There is no summary of them" in chat.stderr
    assert "leaving out the oldest 2 of 4 turns" in chat.stderr
    assert len(chat.engine.prompts) == 1


def test_a_summary_that_is_stopped_changes_nothing() -> None:
    class Stopped(FakeEngine):
        def _chunks(
            self, reply: str, prompt_tokens: int, params: SamplingParams, cancel: CancelFlag
        ) -> Iterator[GenerationChunk]:
            cancel.set()
            yield GenerationChunk(finish_reason="interrupted")

    engine = Stopped(["x"], context_length=360)
    said = [Turn(f"message {number} of some length", "Reply." * 3) for number in range(5)]
    chat = Chat("the next one", engine=engine, said=said, overflow="summarise")
    assert chat.conversation.turns == said
    assert chat.script.prefills[1] == "the next one"
    assert len(engine.prompts) == 1


@pytest.mark.parametrize("policy", ["trim", "error"])
def test_retry_in_a_full_context_is_held_to_the_same(policy: str) -> None:
    said = [*SAID[:3], Turn("x" * 60, "Reply.")]
    chat = Chat("/retry", engine=tight(), said=said, overflow=policy)  # type: ignore[arg-type]
    if policy == "trim":
        assert "leaving out the oldest" in chat.stderr
        assert chat.conversation.all_turns == said
    else:
        assert "error: With this message the conversation has" in chat.stderr
        assert chat.conversation.turns == said
