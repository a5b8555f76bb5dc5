"""The conversation, and how it is made to fit the context."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from xverse_cli.chat.conversation import Conversation, Turn
from xverse_cli.chat.fit import Fitted, fit
from xverse_runtime.errors import ContextOverflowError
from xverse_runtime.types import Message


def encode(messages: Sequence[Message]) -> list[int]:
    """A token a character, and the system message's role so that it can be seen."""
    return [ord(character) for message in messages for character in message.content]


def fitted(conversation: Conversation, user: str, context: int, new: int = 1) -> Fitted:
    return fit(conversation, user, encode, context_length=context, max_new_tokens=new)


def conversation_of(*turns: str, system: str | None = None) -> Conversation:
    return Conversation(system, [Turn(turn, turn.upper()) for turn in turns])


def test_messages() -> None:
    conversation = conversation_of("a", "b", system="s")
    roles = [(message.role, message.content) for message in conversation.messages("c", skip=1)]
    assert roles == [("system", "s"), ("user", "b"), ("assistant", "B"), ("user", "c")]


def test_take_last_and_clear() -> None:
    conversation = conversation_of("a", "b", system="s")
    assert conversation.take_last() == Turn("b", "B")
    conversation.clear()
    assert conversation.take_last() is None
    assert conversation.system == "s"


def test_all_fits() -> None:
    assert fitted(conversation_of("aa"), "bb", 7).dropped == 0


def test_oldest_turns_go_and_the_system_message_stays() -> None:
    conversation = conversation_of("aa", "bb", "cc", system="ss")
    result = fitted(conversation, "dd", 13)
    assert "".join(map(chr, result.prompt_ids)) == "ssbbBBccCCdd"
    assert (result.dropped, result.dropped_tokens) == (1, 4)
    assert len(conversation.turns) == 3  # it is for the caller to drop them


def test_room_for_the_reply_is_at_most_a_quarter() -> None:
    conversation = conversation_of("aa")
    assert fitted(conversation, "bb", 8, new=1000).dropped == 0
    assert fitted(conversation, "bb", 7, new=1000).dropped == 0
    assert fitted(conversation, "bb", 6, new=1000).dropped == 1


def test_a_message_that_leaves_little_room_is_let_through() -> None:
    assert fitted(conversation_of(), "x" * 99, 100, new=1000).prompt_ids == [ord("x")] * 99


def test_a_message_too_long_is_refused_with_both_numbers() -> None:
    with pytest.raises(ContextOverflowError) as caught:
        fitted(conversation_of("aa", system="s"), "x" * 100, 100)
    assert caught.value.params == {"prompt_tokens": 101, "context_length": 100}
