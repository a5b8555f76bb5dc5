"""Makes a conversation fit the context by leaving out its oldest turns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from xverse_cli.chat.conversation import Conversation
from xverse_runtime.errors import ContextOverflowError
from xverse_runtime.types import Message

Encode = Callable[[Sequence[Message]], list[int]]


@dataclass(frozen=True)
class Fitted:
    """A prompt that fits; ``dropped`` turns are not in it, which saved ``dropped_tokens``.

    ``whole_tokens`` is how long it would be with them.
    """

    prompt_ids: list[int]
    dropped: int = 0
    dropped_tokens: int = 0

    @property
    def whole_tokens(self) -> int:
        return len(self.prompt_ids) + self.dropped_tokens


def fit(
    conversation: Conversation,
    user: str,
    encode: Encode,
    *,
    context_length: int,
    max_new_tokens: int,
    partial: str = "",
) -> Fitted:
    """The longest end of the conversation that leaves room for a reply.

    Room is what the reply may need, but no more than a quarter of the context. Without any older
    turn the message is let through as long as one token can follow.

    Args:
        partial: how the reply begins, when it is to be gone on with.

    Raises:
        ContextOverflowError: ``context.overflow``: the message does not fit on its own.
    """
    room = min(max_new_tokens, max(1, context_length // 4))
    begun = [Message("assistant", partial)] if partial else []

    def prompt(skip: int) -> list[int]:
        return encode([*conversation.messages(user, skip=skip), *begun])

    whole = ids = prompt(0)
    dropped = 0
    while len(ids) + room > context_length and dropped < len(conversation.turns):
        dropped += 1
        ids = prompt(dropped)
    if len(ids) >= context_length:
        raise ContextOverflowError(
            "context.overflow", prompt_tokens=len(ids), context_length=context_length
        )
    return Fitted(ids, dropped, len(whole) - len(ids))
