"""Where messages come from: a prompt on a terminal, or the lines of a pipe."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol

from xverse_cli.chat.bursts import gather_bursts
from xverse_cli.chat.history import open_history
from xverse_cli.chat.key_bindings import ClearedInput, EnterKey, key_bindings
from xverse_cli.chat.pasting import Pastes, PlaceholderProcessor
from xverse_cli.chat.rewrapping import erase_rewrapped
from xverse_cli.interrupts import terminate_application
from xverse_cli.messages import text
from xverse_cli.prompt_input import decode
from xverse_cli.streams import Streams

if TYPE_CHECKING:
    from prompt_toolkit.completion import Completer

__all__ = ["ClearedInput", "MessageSource", "PipedLines", "TerminalPrompt", "message_source"]


class MessageSource(Protocol):
    """Gives one input at a time, exactly as it was typed or pasted.

    ``unsent`` is text that was in the prompt when something other than the user ended it.
    """

    interactive: bool
    unsent: str

    @property
    def place(self) -> str:
        """Where the last input stood among several; empty where the user has just typed it."""

    def read(self, prefill: str = "") -> str:
        """The next input.

        Args:
            prefill: text to begin with, for the user to change.

        Raises:
            EOFError: there is no more.
            ClearedInput: Ctrl-C at a prompt that held text.
            KeyboardInterrupt: Ctrl-C.
            UsageError: ``input.not_utf8``: this input is no text; there may be more.
        """


class PipedLines:
    """A message a line, from standard input that is not a terminal."""

    interactive = False
    unsent = ""

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
        editing: ``emacs`` or ``vi``.
        completer: for commands.
        toolbar: the bottom line, for so many columns.
        before: called when a prompt begins.
        keeps_history: whether what is typed goes into the history file.
        rewraps: the terminal is known to wrap rows again that have become too wide.
        input, output: prompt-toolkit's, for tests; the terminal when not given.
    """

    interactive = True
    place = ""

    def __init__(
        self,
        streams: Streams,
        input: Any = None,
        output: Any = None,
        *,
        editing: str = "emacs",
        completer: Completer | None = None,
        toolbar: Callable[[int], str] | None = None,
        before: Callable[[], None] = lambda: None,
        keeps_history: bool = True,
        rewraps: bool = False,
    ) -> None:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.auto_suggest import AutoSuggestFromHistory
        from prompt_toolkit.filters import Condition
        from prompt_toolkit.output import create_output
        from prompt_toolkit.styles import Style

        if output is None and not streams.stdout_is_terminal:
            # stdout is for the replies; otherwise prompt-toolkit's own choice is right, which
            # also knows terminals that cannot move the cursor.
            output = create_output(streams.stderr)
        self.unsent = ""
        self._before = before
        self._pastes, self._enter = Pastes(), EnterKey()
        self._notices: deque[Callable[[], None]] = deque()
        self._session: PromptSession[str] = PromptSession(
            message=[("", "\n"), ("bold", text("chat.prompt"))],
            multiline=True,
            vi_mode=editing == "vi",
            key_bindings=key_bindings(self._pastes, self._enter),
            history=open_history(streams, self._pastes.expand, writes=keeps_history),
            auto_suggest=AutoSuggestFromHistory(),
            completer=completer,
            complete_in_thread=True,  # sessions and folders are read from the disk
            # The menu needs room below the prompt: only where there is something to complete.
            complete_while_typing=Condition(lambda: self._buffer.text.startswith("/")),
            bottom_toolbar=toolbar and (lambda: toolbar(self._columns)),
            prompt_continuation="  ",
            input_processors=[PlaceholderProcessor(self._pastes)],
            tempfile_suffix=".md",
            style=Style([("bottom-toolbar", "noreverse")]),
            input=input,
            output=output,
        )
        gather_bursts(self._session.app)
        if rewraps:
            erase_rewrapped(self._session.app)

    def read(self, prefill: str = "") -> str:
        self._show_notices()
        self._before()
        self._enter.begin()
        self.unsent = ""
        try:
            with terminate_application(self._session.app):
                typed = self._session.prompt(default=prefill, pre_run=self._begun)
        except ClearedInput:
            raise
        except BaseException:
            self.unsent = self._pastes.expand(self._buffer.text)
            raise
        finally:
            # A paste while the reply is written, too, is to be one message at the next prompt.
            self._mark_pastes(True)
            self._show_notices()
        return self._pastes.expand(typed)

    def close(self) -> None:
        """Leave the terminal as it was."""
        self._mark_pastes(False)

    def _mark_pastes(self, marked: bool) -> None:
        if not self.can_write_above:
            return
        output = self._session.app.output
        with suppress(OSError):  # the terminal may be gone
            if marked:
                output.enable_bracketed_paste()
            else:
                output.disable_bracketed_paste()
            output.flush()

    @property
    def can_write_above(self) -> bool:
        """Whether something can be shown above the prompt while somebody types."""
        from prompt_toolkit.utils import is_dumb_terminal

        return not is_dumb_terminal()

    def notify(self, show: Callable[[], None]) -> None:
        """Have something shown above the prompt, or before the next one; from any thread."""
        self._notices.append(show)
        loop = self._session.app.loop
        if self._session.app.is_running and loop is not None:
            loop.call_soon_threadsafe(self._show_above)

    def refresh(self) -> None:
        """Draw the bottom line anew; from any thread."""
        self._session.app.invalidate()

    def stop(self, error: BaseException) -> None:
        """End the prompt with ``error``; from any thread."""

        def end() -> None:
            if self._session.app.is_running:
                self._session.app.exit(exception=error)

        loop = self._session.app.loop
        if self._session.app.is_running and loop is not None:
            loop.call_soon_threadsafe(end)

    def _begun(self) -> None:
        """The prompt is about to be drawn: what came since the last look is not missed."""
        if self._notices:
            self._session.app.loop.call_soon(self._show_above)  # type: ignore[union-attr]

    def _show_above(self) -> None:
        """Unlike prompt-toolkit's own way, this leaves the terminal in its mode: what is typed at
        that moment is not echoed, and Enter stays Enter."""
        app = self._session.app
        app.renderer.erase()
        self._show_notices()
        app.renderer.reset()
        app.renderer.request_absolute_cursor_position()
        app.invalidate()

    def _show_notices(self) -> None:
        while self._notices:
            self._notices.popleft()()

    @property
    def _buffer(self) -> Any:
        return self._session.default_buffer

    @property
    def _columns(self) -> int:
        return self._session.app.output.get_size().columns


def message_source(streams: Streams, **options: Any) -> MessageSource:
    """A prompt where someone sits at a terminal, else the lines of standard input.

    Args:
        options: of a `TerminalPrompt`.
    """
    shown = streams.stdout_is_terminal or streams.stderr_is_terminal
    if streams.stdin_is_terminal and shown:
        return TerminalPrompt(streams, **options)
    return PipedLines(streams)
