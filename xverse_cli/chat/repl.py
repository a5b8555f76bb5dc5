"""The loop: read an input, answer it or do what the command says, until the user leaves."""

from __future__ import annotations

from dataclasses import replace

from xverse_cli.chat.attachments import Attachments
from xverse_cli.chat.commands import run_command
from xverse_cli.chat.conversation import Turn
from xverse_cli.chat.input import ClearedInput, MessageSource
from xverse_cli.chat.loading import LoadFailedError, Models
from xverse_cli.chat.sessions.listing import resumed_lines
from xverse_cli.chat.sessions.reading import SavedSession
from xverse_cli.chat.slash import as_line, as_message
from xverse_cli.chat.turn import Outcome, TurnRunner
from xverse_cli.generation import sampling_params
from xverse_cli.host import Host
from xverse_cli.interrupts import Terminated
from xverse_cli.messages import text
from xverse_cli.models.names import hub_id
from xverse_cli.models.offer import find_or_fetch
from xverse_cli.settings import Settings
from xverse_cli.wording import say_error
from xverse_runtime.errors import UsageError, XverseError
from xverse_runtime.types import TextGenerator


class Repl:
    """A chat in progress; what the slash commands work on.

    Args:
        settings: with which models are loaded.
        models: gets other models than the runner's.
        failed_turns: inputs that got no answer because of an error.
    """

    def __init__(
        self,
        runner: TurnRunner,
        source: MessageSource,
        host: Host,
        *,
        settings: Settings | None = None,
        models: Models | None = None,
    ) -> None:
        self.runner = runner
        self.conversation = runner.conversation
        self.recorder = runner.recorder
        self.host = host
        self.settings = settings or Settings()
        self.attachments = Attachments()
        self.failed_turns = 0
        self.models = models or Models(host)
        self._source = source
        self._prefill = ""
        self._edited: int | None = None  # the turn whose message is at the prompt to be changed
        self._leaving = False
        self._warned = False  # Ctrl-C was pressed at an empty prompt, and nothing else since
        self._to_say = ""  # before the next prompt
        self._attempt = 0

    @property
    def engine(self) -> TextGenerator:
        return self.runner.engine

    def ready(self) -> None:
        """Wait until there is a model; raises `LoadFailedError`."""
        self.models.wait()

    def run(self) -> None:
        """Talk until the input ends or the user leaves.

        Raises:
            KeyboardInterrupt: Ctrl-C or SIGTERM where nobody sits at a prompt to go on.
        """
        try:
            while not self._leaving:
                try:
                    self._step()
                except EOFError:
                    return
        except LoadFailedError as failed:
            if self.recorder.enabled and (self._source.unsent or self._prefill):
                self.say(text("session.draft_saved"))
            raise failed.cause from None
        finally:
            self.recorder.draft(self._source.unsent or self._take_prefill())
            self.recorder.close()

    def say(self, line: str) -> None:
        """Tell the user something, whatever the verbosity; on a terminal no word is cut."""
        self.host.streams.tell(line)

    def show(self, words: str) -> None:
        """Show what the user or the model has written, as it is."""
        self.host.streams.error(words)

    def misspelt(self, line: str) -> None:
        """Say what is wrong with an input that was to be a command: it got no answer."""
        self.failed_turns += 1
        self.say(line)

    def leave(self) -> None:
        """End the chat after this command."""
        self._leaving = True

    def suggest(self, line: str, edited: int | None = None) -> None:
        """Put a line at the next prompt.

        Args:
            edited: the place of the turn, in the whole conversation, that is replaced once it has
                been sent.
        """
        self._prefill, self._edited = line, edited

    def retry(self, at: int) -> None:
        """Answer the message of a turn again, in place of it and what came after it."""
        self._attempt += 1
        self._answer(self.conversation.all_turns[at].user, at=at, again=True)

    def go_on(self, turn: Turn) -> None:
        """Go on with the reply of the last turn."""
        at = len(self.conversation.all_turns) - 1
        self._answer(turn.user, at=at, partial=turn)

    def change_model(self, name: str) -> None:
        """Let another model answer from now on; the conversation stays.

        Raises:
            XverseError: there is no such model.
            LoadFailedError: it could not be loaded, nor the one before again.
        """
        self.ready()
        wanted = replace(self.settings, model=hub_id(name))
        found = find_or_fetch(wanted, self.host)
        self.runner.engine = self.models.current  # lets go of the one so far
        try:
            self.models.change(wanted, found)
        except XverseError as error:
            self._fail(error)
            self._back_to_the_model_before()
            return
        self.settings = wanted
        self.runner.params = sampling_params(self.engine.default_sampling, wanted)
        self.note_model()
        self.say(text("model.changed", model=self.engine.model_name))

    def _back_to_the_model_before(self) -> None:
        self.say(text("model.back", model=self.settings.model))
        try:
            self.models.change(self.settings)
        except XverseError as error:
            raise LoadFailedError(error) from None

    def note_model(self) -> None:
        """Have it written down which model answers."""
        engine = self.engine
        self.recorder.model(
            self.settings.model,
            engine.model_name,
            engine.template_choice.name,
            engine.device,
            engine.precision,
        )

    def switch(self, saved: SavedSession) -> None:
        """Go on with another session; the one so far is on disk.

        Raises:
            UsageError: ``session.in_use``.
            OSError: its file cannot be written.
        """
        if saved.id == self.recorder.id:
            self.say(text("session.is_this", session=saved.id))
            return
        self.recorder.resume(saved)
        self.conversation.become(saved.conversation)
        self.attachments.clear()
        self.resumed(saved)
        if saved.asked_for not in ("", self.settings.model):
            self.say(text("session.other_model", model=saved.asked_for))

    def resumed(self, saved: SavedSession, *, shown: bool = True) -> None:
        """Show where a session had come to, and put at the prompt what was not answered.

        Args:
            shown: otherwise only say what is wrong with its file.
        """
        if saved.damaged:
            self.say(text("session.damaged", count=saved.damaged))
        for line in resumed_lines(saved) if shown else ():
            self.show(line)
        self.suggest(saved.unsent)

    def as_saved(self) -> SavedSession:
        """The conversation as it would be read from its file."""
        recorder = self.recorder
        return SavedSession(
            recorder.path,
            name=recorder.name,
            asked_for=self.settings.model,
            conversation=self.conversation,
        )

    def _step(self) -> None:
        try:
            if self._to_say:  # not where Ctrl-C is handled: there another one would end the chat
                self.host.streams.say(self._to_say)
                self._to_say = ""
            line = self._read()
            self._warned = False
            self._handle(line)
        except KeyboardInterrupt as error:
            if isinstance(error, Terminated) or not self._source.interactive:
                raise
            if self._warned and not isinstance(error, ClearedInput):
                raise EOFError from None
            self._edited, self._warned = None, not isinstance(error, ClearedInput)
            self._to_say = text("chat.how_to_leave")

    def _read(self) -> str:
        try:
            return self._source.read(self._take_prefill())
        except UsageError as error:  # the next line may be better
            self._fail(error)
            return ""

    def _fail(self, error: Exception) -> None:
        self.failed_turns += 1
        say_error(error, self.host, self._source.place)

    def _handle(self, line: str) -> None:
        edited, self._edited = self._edited, None
        if not line.strip():
            return
        message = as_message(line)
        if message is None:
            self._command(line)
            return
        self._attempt = 0
        if self._answer(self.attachments.before(message), at=edited):
            self.attachments.clear()
        else:
            self.suggest(line, edited)

    def _command(self, line: str) -> None:
        try:
            run_command(line, self)
        except XverseError as error:
            self._fail(error)

    def _answer(
        self,
        message: str,
        *,
        at: int | None = None,
        partial: Turn | None = None,
        again: bool = False,
    ) -> bool:
        """Answer a message; whether the conversation has gained a turn."""
        try:
            outcome = self._outcome(message, at, partial)
        except (OSError, LoadFailedError):
            raise  # the streams are gone, or there is no model: nothing to go on with
        except Exception as error:
            self._fail(error)
            return False
        if outcome == "done":
            return True
        if not self._source.interactive:
            raise KeyboardInterrupt
        if outcome == "nothing":
            # A new or changed message comes back to the prompt, another reply was only asked for.
            replaces = again or partial is not None
            key = "chat.interrupted_unchanged" if replaces else "chat.interrupted_early"
            self.host.streams.say(text(key))
            return False
        self.host.streams.say(text("chat.interrupted"))
        return True

    def _outcome(self, message: str, at: int | None, partial: Turn | None) -> Outcome:
        try:
            self.ready()
        except (LoadFailedError, KeyboardInterrupt) as error:
            self._prefill = as_line(message)  # nobody else has it yet
            if isinstance(error, (LoadFailedError, Terminated)) or not self._source.interactive:
                raise
            return "nothing"
        return self.runner.run(message, attempt=self._attempt, at=at, partial=partial)

    def _take_prefill(self) -> str:
        prefill, self._prefill = self._prefill, ""
        return prefill
