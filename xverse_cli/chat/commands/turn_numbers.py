"""How commands are told which turn is meant."""

from __future__ import annotations

from xverse_cli.chat.conversation import Conversation
from xverse_runtime.errors import UsageError


def turn_place(conversation: Conversation, argument: str) -> int | None:
    """The place of a turn in the whole conversation: a number from 1, by default the last.

    Returns:
        ``None`` where nothing has been said yet.

    Raises:
        UsageError: ``command.no_such_turn``.
    """
    count = len(conversation.all_turns)
    if not argument:
        return count - 1 if count else None
    if not argument.isdecimal() or not 1 <= int(argument) <= count:
        raise UsageError("command.no_such_turn", number=argument, count=count)
    return int(argument) - 1
