"""The slash commands, as a table; `/help`, completion and docs/chat.md are made from it."""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING

from xverse_cli.chat.commands.keeping import KEEPING
from xverse_cli.chat.commands.looking import LOOKING
from xverse_cli.chat.commands.registry import SlashCommand
from xverse_cli.chat.commands.setting import SETTING
from xverse_cli.chat.commands.talking import TALKING
from xverse_cli.chat.keys import KEYS
from xverse_cli.chat.slash import as_message
from xverse_cli.messages import text
from xverse_cli.render.columns import padded, widest

if TYPE_CHECKING:
    from xverse_cli.chat.repl import Repl

__all__ = ["COMMANDS", "SlashCommand", "as_message", "command_named", "key_rows", "run_command"]


def _help(chat: Repl, argument: str) -> None:
    commands = [(command.usage, text(command.help)) for command in COMMANDS]
    keys = key_rows()
    width = widest(name for name, _ in (*commands, *keys))
    for rows in (commands, keys):
        for name, what in rows:
            chat.say(f"  {padded(name, width)}  {what}")
        chat.say("")
    chat.say(text("command.text_hint"))


def _exit(chat: Repl, argument: str) -> None:
    chat.leave()


COMMANDS: tuple[SlashCommand, ...] = (
    SlashCommand("/help", "command.help", _help),
    *TALKING,
    *SETTING,
    *LOOKING,
    *KEEPING,
    SlashCommand("/exit", "command.exit", _exit),
)
_BY_NAME = {command.name: command for command in COMMANDS}


def key_rows() -> list[tuple[str, str]]:
    """The keys and what they do."""
    return [(text(f"keys.{name}"), text(f"keys.{name}_does")) for name in KEYS]


def command_named(name: str) -> SlashCommand | None:
    return _BY_NAME.get(name.lower())


def run_command(line: str, chat: Repl) -> None:
    """Do what a command line says, or say what is wrong with it."""
    name, _, argument = line.strip().partition(" ")
    command = command_named(name)
    argument = argument.strip()
    if command is None:
        _unknown(name, chat)
    elif argument and not command.argument:
        chat.misspelt(text("command.surplus", name=command.name))
    else:
        command.run(chat, argument)


def _unknown(name: str, chat: Repl) -> None:
    nearest = get_close_matches(name.lower(), _BY_NAME, 1)
    advice = text("command.nearest", nearest=nearest[0]) if nearest else text("command.all")
    chat.misspelt(text("command.unknown", name=name, advice=advice))
    chat.say(text("command.text_hint"))
