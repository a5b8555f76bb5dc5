"""The slash commands, as a table; `/help` is made from it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Protocol

from xverse_cli.chat.conversation import Conversation
from xverse_cli.messages import text


class Session(Protocol):
    """What commands may do to the chat."""

    conversation: Conversation

    def say(self, line: str) -> None:
        """Tell the user something."""

    def retry(self) -> None:
        """Answer the last message again."""

    def leave(self) -> None:
        """End the chat after this command."""


@dataclass(frozen=True)
class SlashCommand:
    """A command; ``argument`` is the key of how its argument is written, if it takes one."""

    name: str
    help: str
    run: Callable[[Session, str], None]
    argument: str | None = None

    @property
    def usage(self) -> str:
        return f"{self.name} {text(self.argument)}" if self.argument else self.name


def _help(session: Session, argument: str) -> None:
    rows = [(command.usage, text(command.help)) for command in COMMANDS]
    rows += key_rows()
    width = max(len(name) for name, _ in rows)
    for name, what in rows:
        session.say(f"  {name:{width}}  {what}")
    session.say(text("command.text_hint"))


def key_rows() -> list[tuple[str, str]]:
    """The keys and what they do."""
    names = ("enter", "newline", "interrupt", "leave")
    return [(text(f"keys.{name}"), text(f"keys.{name}_does")) for name in names]


def _clear(session: Session, argument: str) -> None:
    session.conversation.clear()
    session.say(text("command.cleared"))


def _retry(session: Session, argument: str) -> None:
    session.retry()


def _system(session: Session, argument: str) -> None:
    conversation = session.conversation
    if argument:
        conversation.system = None if argument == "-" else argument
        key = "command.system_set" if conversation.system else "command.system_none"
        session.say(text(key))
    elif conversation.system:
        session.say(text("command.system_is", text=conversation.system))
    else:
        session.say(text("command.system_none"))


def _exit(session: Session, argument: str) -> None:
    session.leave()


COMMANDS = (
    SlashCommand("/help", "command.help", _help),
    SlashCommand("/clear", "command.clear", _clear),
    SlashCommand("/retry", "command.retry", _retry),
    SlashCommand("/system", "command.system", _system, "command.system_argument"),
    SlashCommand("/exit", "command.exit", _exit),
)
_BY_NAME = {command.name: command for command in COMMANDS}


def as_message(line: str) -> str | None:
    """The message an input is, or ``None`` when it is a command.

    Only a single line that begins with one slash is a command: what was pasted with line breaks
    is text whatever it begins with, and ``//`` stands for a slash.
    """
    if line.startswith("//"):
        return line[1:]
    return None if line.startswith("/") and "\n" not in line else line


def run_command(line: str, session: Session) -> None:
    """Do what a command line says, or say what is wrong with it."""
    name, _, argument = line.strip().partition(" ")
    command = _BY_NAME.get(name.lower())
    argument = argument.strip()
    if command is None:
        _unknown(name, session)
    elif argument and not command.argument:
        session.say(text("command.surplus", name=command.name))
    else:
        command.run(session, argument)


def _unknown(name: str, session: Session) -> None:
    nearest = get_close_matches(name.lower(), _BY_NAME, 1, 0.5)
    advice = text("command.nearest", nearest=nearest[0]) if nearest else text("command.all")
    session.say(text("command.unknown", name=name) + " " + advice)
    session.say(text("command.text_hint"))
