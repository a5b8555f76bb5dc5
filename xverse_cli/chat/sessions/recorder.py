"""Writes down what happens in a conversation. A full disk does not end it, but is spoken of."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from xverse_cli.chat.conversation import Conversation, Made, Turn
from xverse_cli.chat.sessions.folder import new_session_path
from xverse_cli.chat.sessions.journal import Journal
from xverse_cli.chat.sessions.reading import VERSION, SavedSession
from xverse_cli.chat.slash import as_line
from xverse_cli.messages import text
from xverse_runtime.errors import XverseError

Complain = Callable[[str], None]


class Recorder:
    """The session a chat is written to; the file is made with the first thing worth keeping.

    Args:
        conversation: what is written down.
        complain: told, in words, that something could not be saved, and when it could be again.
        enabled: whether to write at all; `start` can change that later.
    """

    def __init__(
        self, conversation: Conversation, complain: Complain, *, enabled: bool = True
    ) -> None:
        self._conversation = conversation
        self._complain = complain
        self.enabled = enabled
        self._journal = Journal(new_session_path())
        self._model: dict[str, object] | None = None
        self._written_model: dict[str, object] | None = None
        self._begun = False
        self._failing = False
        self.name = ""
        self.unsent = ""  # the input that the file holds for the next prompt

    @property
    def id(self) -> str:
        return self._journal.path.stem

    @property
    def path(self) -> Path:
        return self._journal.path

    @property
    def saving(self) -> bool:
        """Whether everything so far is on disk."""
        return self.enabled and self._begun and not self.waiting

    @property
    def waiting(self) -> bool:
        """Whether something could not be written so far."""
        return self._journal.waiting > 0

    def resume(self, saved: SavedSession) -> None:
        """Go on in the file of ``saved``, whose conversation the chat's has become.

        Raises:
            UsageError: ``session.in_use``: then nothing has changed.
            OSError: the file cannot be written.
        """
        journal = Journal(saved.path)
        journal.open()
        self.close()
        self._journal, self._begun, self.name = journal, True, saved.name
        self._written_model = None
        self.unsent = saved.unsent

    def renew(self) -> None:
        """Begin a session of its own with the next record."""
        self.close()
        self._journal, self._begun, self.name = Journal(new_session_path()), False, ""
        self._written_model = None
        self.unsent = ""

    def start(self) -> None:
        """Begin to write though it was not wanted before; what was said so far goes first."""
        self.enabled = True
        self._write(*self._snapshot())

    def model(self, asked_for: str, model: str, template: str, device: str, precision: str) -> None:
        """Which model answers from now on; written once there is something to say about it."""
        self._model = {
            "type": "model",
            "asked_for": asked_for,
            "model": model,
            "template": template,
            "device": device,
            "precision": precision,
        }

    def message(self, message: str) -> None:
        """A message that is about to be answered."""
        self.unsent = as_line(message)
        self._write({"type": "message", "text": message})

    def turn(self) -> None:
        """The newest turn, complete or interrupted; in the file, what stood at its place and after
        it is no longer part of the conversation."""
        turns = self._conversation.all_turns
        complained = self._failing and self.unsent != ""  # of its message, a moment ago
        self.unsent = ""
        self._write(turn_record(len(turns) - 1, turns[-1]), quietly=complained)

    def undo(self) -> None:
        """Turns were taken back."""
        self.unsent = ""
        self._write({"type": "undo", "turns": len(self._conversation.all_turns)})

    def system(self) -> None:
        """Another system message; before anything else was written, it waits for that."""
        if self._begun:
            self._write(self._system_record())

    def draft(self, draft: str) -> None:
        """What was typed and not sent; empty where the user has given up what was there."""
        if draft != self.unsent:
            self.unsent = draft
            self._write({"type": "draft", "text": draft})

    def call(self, name: str) -> None:
        """Give the session a name."""
        self.name = name
        self._write({"type": "name", "name": name})

    def try_again(self) -> None:
        """Write what could not be written so far, if there is anything."""
        if self.waiting:
            self._write()

    def close(self) -> None:
        """Try once more to write what could not be written, and close the file."""
        self.try_again()
        self._journal.close()

    def _write(self, *records: dict[str, object], quietly: bool = False) -> None:
        """Write ``records``, and nothing more than what waits if there are none.

        Args:
            quietly: do not complain.
        """
        if not self.enabled:
            return
        if self._journal.gone:
            self._complain(text("session.file_gone", path=self._journal.path))
            name = self.name
            self.renew()
            self._write(*self._snapshot(), {"type": "name", "name": name})
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        try:
            self._journal.append(*({**record, "time": now} for record in self._with_head(records)))
        except (OSError, XverseError) as error:
            self._failing = True
            if not quietly:
                self._complain(
                    text("session.not_saved", path=self._journal.path, detail=_why(error))
                )
        else:
            if self._failing:
                self._failing = False
                self._complain(text("session.saved_again", path=self._journal.path))

    def _snapshot(self) -> list[dict[str, object]]:
        turns = self._conversation.all_turns
        return [turn_record(at, turn) for at, turn in enumerate(turns)]

    def _system_record(self) -> dict[str, object]:
        return {"type": "system", "text": self._conversation.system}

    def _with_head(self, records: tuple[dict[str, object], ...]) -> list[dict[str, object]]:
        """``records`` after what a file begins with, and after a change of the model."""
        head: list[dict[str, object]] = []
        if not self._begun:
            head.append({"type": "session", "version": VERSION})
            if self._conversation.system is not None:
                head.append(self._system_record())
            self._begun = True
        if self._model != self._written_model and self._model is not None:
            head.append(self._model)
            self._written_model = self._model
        return [*head, *records]


def turn_record(at: int, turn: Turn) -> dict[str, object]:
    """A turn as it stands in the file; ``at`` is its place in the whole conversation."""
    made = turn.made
    return {
        "type": "turn",
        "at": at,
        "left_out": made.left_out if made else 0,  # turns that were no longer in the context
        "summary": made.summary if made else None,  # and what stood for them
        "user": turn.user,
        "reply": turn.assistant,
        "interrupted": turn.interrupted,
        "made": made_record(made) if made else None,
    }


def made_record(made: Made) -> dict[str, Any]:
    """How a reply was made, without what other records say."""
    return {
        "model": made.model,
        "template": made.template,
        "device": made.device,
        "precision": made.precision,
        "settings": dict(made.settings),
        "prompt_tokens": made.prompt_tokens,
        "prompt_digest": made.prompt_digest,
        "completion_tokens": made.completion_tokens,
        "finish": made.finish,
        "continued": made.continued,
    }


def _why(error: Exception) -> str:
    from xverse_cli.messages import error_text

    if isinstance(error, XverseError):
        return error_text(error)[0]
    return getattr(error, "strerror", None) or str(error)
