"""From a conversation to the ids the model was trained to continue.

Two kinds of format. A literal one is a few role strings; roles and contents are encoded as
separate segments, as the vendor's chat code does, which no text template can express. A Jinja one
renders text that is encoded as a whole. In both, special tokens written in a message are text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from xverse_runtime.errors import UsageError
from xverse_runtime.tokenizer import Tokenizer
from xverse_runtime.types import Message


class ChatFormat(Protocol):
    """Turns messages into ids up to where the assistant's next reply begins."""

    @property
    def name(self) -> str: ...

    def encode(self, messages: Sequence[Message], tokenizer: Tokenizer) -> list[int]: ...


@dataclass(frozen=True)
class LiteralFormat:
    """Role strings in front, ``system_end`` and ``user_end`` after the content, the end token
    after the assistant's."""

    name: str
    system: str
    system_end: str
    user: str
    user_end: str
    assistant: str
    end_token_id: int

    def encode(self, messages: Sequence[Message], tokenizer: Tokenizer) -> list[int]:
        """Ids of ``system? (user assistant)* user`` and the opening of the reply.

        An assistant message at the end is left open: the reply continues it.
        """
        check_messages(messages)
        heads = {"system": self.system, "user": self.user, "assistant": self.assistant}
        tails = {"system": self.system_end, "user": self.user_end, "assistant": ""}
        ids: list[int] = []
        for message in messages:
            ids += tokenizer.encode(heads[message.role])
            ids += tokenizer.encode(message.content + tails[message.role])
            if message.role == "assistant" and message is not messages[-1]:
                ids.append(self.end_token_id)
        if messages[-1].role != "assistant":
            ids += tokenizer.encode(self.assistant)
        return ids


@dataclass(frozen=True)
class RawFormat:
    """For base models: the last user message is the text to continue."""

    name: str = "raw"

    def encode(self, messages: Sequence[Message], tokenizer: Tokenizer) -> list[int]:
        """Ids of all contents one after the other; there are no roles to mark."""
        check_messages(messages)
        return tokenizer.encode("\n\n".join(message.content for message in messages))


def human_assistant(end_token_id: int) -> LiteralFormat:
    """The vendor's dense chat models'; a system message begins like a user's."""
    return LiteralFormat(
        "human-assistant", "Human: ", "\n", "Human: ", "\n\n", "Assistant: ", end_token_id
    )


def system_user_assistant(end_token_id: int) -> LiteralFormat:
    """The other format seen for the family."""
    return LiteralFormat(
        "system-user-assistant", "system: ", "\n", "user: ", "\n", "assistant: ", end_token_id
    )


def check_messages(messages: Sequence[Message]) -> None:
    """Roles must be ``system? user (assistant user)* assistant?``.

    Raises:
        UsageError: ``template.invalid_messages``.
    """
    roles = [message.role for message in messages]
    turns = roles[1:] if roles[:1] == ["system"] else roles
    alternate = all(role == ("user", "assistant")[i % 2] for i, role in enumerate(turns))
    if not turns or not alternate:
        detail = f"roles {', '.join(roles) or 'none'}; user and assistant must alternate"
        raise UsageError("template.invalid_messages", detail=detail)
