"""Completes commands, what they take, file names and saved sessions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document

from xverse_cli.chat.commands import COMMANDS, command_named
from xverse_cli.chat.slash import as_message
from xverse_cli.messages import text

if TYPE_CHECKING:
    from xverse_cli.chat.repl import Repl


class CommandCompleter(Completer):
    """Knows the commands.

    Args:
        chat: the chat whose sessions, models and settings are offered.
    """

    def __init__(self, chat: Callable[[], Repl]) -> None:
        self._chat = chat
        self._paths = PathCompleter(expanduser=True)

    def get_completions(
        self, document: Document, complete_event: CompleteEvent
    ) -> Iterable[Completion]:
        if as_message(document.text) is not None:
            return
        name, space, argument = document.text_before_cursor.partition(" ")
        if not space:
            yield from _commands(name)
            return
        command = command_named(name)
        if command is None:
            return
        if command.takes_path:
            inner = Document(argument, len(argument))
            yield from self._paths.get_completions(inner, complete_event)
        elif command.complete is not None:
            for value in command.complete(self._chat()):
                if value.lower().startswith(argument.lower()):
                    yield Completion(value, -len(argument))


def _commands(begun: str) -> Iterator[Completion]:
    for command in COMMANDS:
        if command.name.startswith(begun.lower()):
            space = " " if command.argument else ""
            yield Completion(
                command.name + space,
                -len(begun),
                display=command.name,
                display_meta=text(command.help),
            )
