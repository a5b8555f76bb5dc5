"""Lets the model sum up the turns that no longer fit, in place of leaving them out."""

from __future__ import annotations

from xverse_cli.chat.conversation import Conversation
from xverse_cli.generation import Reply
from xverse_runtime.types import Message, SamplingParams, TextGenerator

# The model reads these, not the user: they do not follow the language of the interface, so that a
# session means the same wherever it is gone on with.
REQUEST = (
    "Summarise our conversation up to here in a few sentences, in its own language. Keep names,"
    " numbers, decisions and open questions."
)
HEADING = "Summary of the conversation before this point:"


def summary_tokens(context_length: int) -> int:
    """How long a summary may be."""
    return max(16, min(256, context_length // 8))


def summary_prompt(
    conversation: Conversation, turns: int, engine: TextGenerator
) -> list[int] | None:
    """What to ask for a summary of the oldest ``turns`` in the context; ``None`` if too long."""
    messages = [*conversation.past(until=turns), Message("user", REQUEST)]
    ids = engine.encode_chat(messages)
    room = summary_tokens(engine.context_length)
    return ids if len(ids) + room <= engine.context_length else None


def summary_params(params: SamplingParams, context_length: int) -> SamplingParams:
    """Like ``params``, but as likely as can be, and short."""
    return SamplingParams(
        temperature=0,
        repetition_penalty=params.repetition_penalty,
        max_new_tokens=summary_tokens(context_length),
        stop=params.stop,
    )


def summary_message(reply: Reply) -> str:
    """The summary as the model is told it; empty when it wrote none."""
    words = reply.text.strip()
    return f"{HEADING} {words}" if words else ""
