"""What the context holds, in tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xverse_cli.chat.attachments import Attachment
from xverse_cli.chat.conversation import Conversation
from xverse_cli.messages import text
from xverse_runtime.types import Message, TextGenerator

if TYPE_CHECKING:
    from xverse_cli.chat.repl import Repl

_BAR = 40


def used_tokens(conversation: Conversation, engine: TextGenerator) -> int:
    """How many tokens stand before the next message."""
    if not conversation.past():
        return 0
    return len(engine.encode_chat(conversation.messages(""))) - _empty(engine)


def context_lines(chat: Repl) -> list[str]:
    """`/context`: a meter, what takes how much, and what comes when it is full."""
    conversation, engine = chat.conversation, chat.engine
    used, limit = used_tokens(conversation, engine), engine.context_length
    filled = round(_BAR * min(1.0, used / limit))
    bar = "█" * filled + "░" * (_BAR - filled)
    lines = [
        text("context.meter", bar=bar, used=used, limit=limit, percent=round(100 * used / limit))
    ]
    head = Conversation(conversation.system, summary=conversation.summary)
    before = used_tokens(head, engine)
    if before:
        lines.append(text("context.system", tokens=before))
    for at, turn in enumerate(conversation.turns):
        upto = Conversation(head.system, conversation.turns[: at + 1], summary=head.summary)
        after = used_tokens(upto, engine)
        number = len(conversation.left_out) + at + 1
        words = " ".join(turn.user.split())[:40]
        lines.append(text("context.turn", number=number, tokens=after - before, words=words))
        before = after
    if conversation.left_out:
        lines.append(text("context.left_out", count=len(conversation.left_out)))
    lines.append(text(f"context.when_{chat.runner.overflow}"))
    return lines


def attachment_line(attachment: Attachment, chat: Repl) -> tuple[bool, str]:
    """Whether a file can be sent at all, and what it takes of the context."""
    engine = chat.engine
    tokens = len(engine.encode_chat([Message("user", attachment.message)])) - _empty(engine)
    used, limit = used_tokens(chat.conversation, engine), engine.context_length
    if tokens >= limit:
        return False, text("file.too_long", name=attachment.name, tokens=tokens, limit=limit)
    return True, text("file.tokens", name=attachment.name, tokens=tokens, used=used, limit=limit)


def _empty(engine: TextGenerator) -> int:
    return len(engine.encode_chat([Message("user", "")]))
