"""Commands that change what was said, or have it said again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xverse_cli.chat.commands.registry import SlashCommand
from xverse_cli.chat.commands.replay import REPLAY
from xverse_cli.chat.commands.turn_numbers import turn_place
from xverse_cli.chat.slash import as_line
from xverse_cli.messages import text

if TYPE_CHECKING:
    from xverse_cli.chat.repl import Repl


def _retry(chat: Repl, argument: str) -> None:
    turns = chat.conversation.all_turns
    if turns:
        chat.retry(len(turns) - 1)
    else:
        chat.say(text("command.nothing_to_retry"))


def _edit(chat: Repl, argument: str) -> None:
    """The conversation stays as it is until the changed message is sent."""
    at = turn_place(chat.conversation, argument)
    if at is None:
        chat.say(text("command.nothing_to_edit"))
        return
    turns = chat.conversation.all_turns
    if at < len(turns) - 1:
        chat.say(text("command.edit_drops", number=at + 1, last=len(turns)))
    chat.suggest(as_line(turns[at].user), edited=at)


def _undo(chat: Repl, argument: str) -> None:
    turn = chat.conversation.take_last()
    if turn is None:
        chat.say(text("command.nothing_to_undo"))
        return
    chat.recorder.undo()
    chat.say(text("command.undone", count=len(chat.conversation.all_turns)))


def _continue(chat: Repl, argument: str) -> None:
    turns = chat.conversation.turns
    if not turns:
        chat.say(text("command.nothing_to_continue"))
    elif not turns[-1].unfinished:
        chat.say(text("command.reply_is_whole"))
    else:
        chat.go_on(turns[-1])


def _system(chat: Repl, argument: str) -> None:
    conversation = chat.conversation
    if argument:
        conversation.system = None if argument == "-" else argument
        chat.recorder.system()
        key = "command.system_set" if conversation.system else "command.system_none"
        chat.say(text(key))
    elif conversation.system:
        chat.say(text("command.system_is", text=conversation.system))
    else:
        chat.say(text("command.system_none"))


def _clear(chat: Repl, argument: str) -> None:
    session = chat.recorder.id if chat.recorder.saving else ""
    if chat.conversation.all_turns:
        chat.conversation.clear()
        chat.recorder.renew()
    chat.attachments.clear()
    if session:
        chat.say(text("command.cleared_saved", session=session))
    else:
        chat.say(text("command.cleared"))


TALKING = (
    SlashCommand("/retry", "command.retry", _retry),
    SlashCommand("/edit", "command.edit", _edit, "command.number_argument"),
    SlashCommand("/undo", "command.undo", _undo),
    SlashCommand("/continue", "command.continue", _continue),
    REPLAY,
    SlashCommand("/system", "command.system", _system, "command.system_argument"),
    SlashCommand("/clear", "command.clear", _clear),
)
