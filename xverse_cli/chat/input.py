"""Where messages come from: a prompt on a terminal, or the lines of a pipe."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from xverse_cli.chat.history import open_history
from xverse_cli.messages import text
from xverse_cli.prompt_input import decode
from xverse_cli.streams import Streams

if TYPE_CHECKING:
    from prompt_toolkit.key_binding import KeyBindings


class MessageSource(Protocol):
    """Gives one input at a time, exactly as it was typed or pasted."""

    interactive: bool

    @property
    def place(self) -> str:
        """Where the last input stood among several; empty where the user has just typed it."""

    def read(self, prefill: str = "") -> str:
        """The next input.

        Args:
            prefill: text to begin with, for the user to change.

        Raises:
            EOFError: there is no more.
            KeyboardInterrupt: Ctrl-C.
            UsageError: ``input.not_utf8``: this input is no text; there may be more.
        """


class PipedLines:
    """A message a line, from standard input that is not a terminal."""

    interactive = False

    def __init__(self, streams: Streams) -> None:
        self._streams = streams
        self._offset = 0
        self._number = 0

    @property
    def place(self) -> str:
        return text("input.line", number=self._number)

    def read(self, prefill: str = "") -> str:
        stdin = self._streams.stdin
        line = b"" if stdin is None or stdin.closed else stdin.buffer.readline()
        if not line:
            raise EOFError
        self._number += 1
        start, self._offset = self._offset, self._offset + len(line)
        return decode(line, text("input.stdin"), start)


class TerminalPrompt:
    """A prompt-toolkit prompt: history, several lines, a paste in one piece.

    Args:
        input, output: prompt-toolkit's, for tests; the terminal when not given.
    """

    interactive = True
    place = ""

    def __init__(self, streams: Streams, input: Any = None, output: Any = None) -> None:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.output import create_output

        if output is None and not streams.stdout_is_terminal:
            # stdout is for the replies; otherwise prompt-toolkit's own choice is right, which
            # also knows terminals that cannot move the cursor.
            output = create_output(streams.stderr)
        self._session: PromptSession[str] = PromptSession(
            message=[("", "\n"), ("bold", text("chat.prompt"))],
            multiline=True,
            key_bindings=_keys(),
            history=open_history(streams),
            prompt_continuation="  ",
            input=input,
            output=output,
        )

    def read(self, prefill: str = "") -> str:
        return self._session.prompt(default=prefill)


def message_source(streams: Streams) -> MessageSource:
    """A prompt where someone sits at a terminal, else the lines of standard input."""
    shown = streams.stdout_is_terminal or streams.stderr_is_terminal
    if streams.stdin_is_terminal and shown:
        return TerminalPrompt(streams)
    return PipedLines(streams)


def _keys() -> KeyBindings:
    from prompt_toolkit.key_binding import KeyBindings

    keys = KeyBindings()

    @keys.add("enter")
    def _send(event: Any) -> None:
        event.current_buffer.validate_and_handle()

    @keys.add("escape", "enter")
    @keys.add("c-j")
    def _new_line(event: Any) -> None:
        event.current_buffer.newline(copy_margin=False)

    return keys
