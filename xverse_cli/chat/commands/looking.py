"""Commands that show something and change nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xverse_cli.chat.commands.registry import SlashCommand
from xverse_cli.chat.commands.turn_numbers import turn_place
from xverse_cli.chat.context import context_lines
from xverse_cli.chat.statistics import statistics_lines
from xverse_cli.messages import text

if TYPE_CHECKING:
    from xverse_cli.chat.repl import Repl


def _show(chat: Repl, argument: str) -> None:
    conversation = chat.conversation
    if turn_place(conversation, argument) is None:
        chat.say(text("command.nothing_to_show"))
        return
    turns = conversation.all_turns
    places = [int(argument) - 1] if argument else range(len(turns))
    if conversation.system and not argument:
        chat.show(text("command.system_is", text=conversation.system))
    for at in places:
        if at == len(conversation.left_out) and at and not argument:
            chat.say(text("show.left_out", count=at))
            if conversation.summary:
                chat.show(conversation.summary)
        chat.show(text("show.message", number=at + 1, words=turns[at].user))
        chat.show(turns[at].assistant.rstrip("\n"))
        if turns[at].interrupted:
            chat.say(text("show.interrupted"))


def _stats(chat: Repl, argument: str) -> None:
    chat.ready()
    for line in statistics_lines(chat):
        chat.say(line)


def _context(chat: Repl, argument: str) -> None:
    chat.ready()
    for line in context_lines(chat):
        chat.say(line)


LOOKING = (
    SlashCommand("/show", "command.show", _show, "command.number_argument"),
    SlashCommand("/stats", "command.stats", _stats),
    SlashCommand("/context", "command.context", _context),
)
