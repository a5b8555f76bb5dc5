"""The loop: read an input, answer it or do what the command says, until the user leaves."""

from __future__ import annotations

from xverse_cli.chat.commands import as_message, run_command
from xverse_cli.chat.input import MessageSource
from xverse_cli.chat.turn import TurnRunner
from xverse_cli.host import Host
from xverse_cli.interrupts import Terminated
from xverse_cli.messages import text
from xverse_cli.wording import say_error
from xverse_runtime.errors import UsageError


class Repl:
    """A chat in progress; the `Session` of the slash commands.

    Args:
        failed_turns: messages that got no reply because of an error.
    """

    def __init__(self, runner: TurnRunner, source: MessageSource, host: Host) -> None:
        self.conversation = runner.conversation
        self.failed_turns = 0
        self._runner = runner
        self._source = source
        self._host = host
        self._prefill = ""
        self._leaving = False
        self._attempt = 0

    def run(self) -> None:
        """Talk until the input ends or the user leaves.

        Raises:
            KeyboardInterrupt: Ctrl-C or SIGTERM where nobody sits at a prompt to go on.
        """
        while not self._leaving:
            try:
                self._handle(self._read())
            except EOFError:
                return
            except KeyboardInterrupt as error:
                if isinstance(error, Terminated) or not self._source.interactive:
                    raise
                self.say(text("chat.how_to_leave"))

    def say(self, line: str) -> None:
        self._host.streams.error(line)

    def leave(self) -> None:
        self._leaving = True

    def retry(self) -> None:
        turn = self.conversation.take_last()
        if turn is None:
            self.say(text("command.nothing_to_retry"))
            return
        self._attempt += 1
        replaced = False
        try:
            replaced = self._answer(turn.user)
        finally:
            if not replaced:
                self.conversation.add(turn)

    def _read(self) -> str:
        try:
            return self._source.read(self._take_prefill())
        except UsageError as error:  # the next line may be better
            self._fail(error)
            return ""

    def _fail(self, error: Exception) -> None:
        self.failed_turns += 1
        say_error(error, self._host, self._source.place)

    def _handle(self, line: str) -> None:
        if not line.strip():
            return
        message = as_message(line)
        if message is None:
            run_command(line, self)
            return
        self._attempt = 0
        if not self._answer(message):
            self._prefill = line

    def _answer(self, message: str) -> bool:
        """Answer a message; whether the conversation has gained a turn."""
        try:
            outcome = self._runner.run(message, attempt=self._attempt)
        except OSError:  # the streams are gone or the disk is full: nothing to go on with
            raise
        except Exception as error:
            self._fail(error)
            return False
        if outcome == "done":
            return True
        if not self._source.interactive:
            raise KeyboardInterrupt
        kept = outcome == "interrupted"
        self._host.streams.say(text("chat.interrupted" if kept else "chat.interrupted_early"))
        return kept

    def _take_prefill(self) -> str:
        prefill, self._prefill = self._prefill, ""
        return prefill
