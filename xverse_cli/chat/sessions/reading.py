"""From the lines of a session's file back to the conversation; a file cut short reads too."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from xverse_cli.chat.conversation import Conversation, Made, Turn
from xverse_cli.chat.slash import as_line
from xverse_runtime.errors import IntegrityError, UsageError

VERSION = 1


@dataclass
class SavedSession:
    """What a file holds.

    Args:
        asked_for: the model by the name the user called it; ``model`` as it calls itself.
        unsent: the input that is a message without a reply, or that was never sent.
        damaged: lines that could not be read: the last one of a process that was killed, or worse.
    """

    path: Path
    name: str = ""
    created: str = ""
    changed: str = ""
    asked_for: str = ""
    model: str = ""
    template: str = ""
    conversation: Conversation = field(default_factory=Conversation)
    unsent: str = ""
    damaged: int = 0

    @property
    def id(self) -> str:
        return self.path.stem

    @property
    def title(self) -> str:
        """Its name, or how its first message begins."""
        turns = self.conversation.all_turns
        first = turns[0].user if turns else self.unsent
        return self.name or " ".join(first.split())[:60]


def read_session(path: Path) -> SavedSession:
    """Everything of a session that can be read.

    Raises:
        IntegrityError: ``session.unreadable``.
        UsageError: ``session.newer``: a later version of the program wrote it.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        detail = error.strerror or str(error)
        raise IntegrityError("session.unreadable", path=path, detail=detail) from None
    session = SavedSession(path)
    for record in _records(data, session):
        try:
            _READERS.get(str(record.get("type")), _pass)(session, record)
        except (KeyError, TypeError, ValueError, OverflowError):
            session.damaged += 1
        session.changed = str(record.get("time") or session.changed)
    return session


def _records(data: bytes, session: SavedSession) -> Iterator[dict[str, Any]]:
    for line in data.split(b"\n"):
        if not line.strip(b" \r\0"):
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):  # not JSON, not UTF-8, brackets without end
            session.damaged += 1
            continue
        if isinstance(record, dict):
            yield record
        else:
            session.damaged += 1


def _pass(session: SavedSession, record: Mapping[str, Any]) -> None:
    """A kind of record that this version does not know says nothing it needs."""


def _session(session: SavedSession, record: Mapping[str, Any]) -> None:
    if int(record["version"]) > VERSION:
        raise UsageError("session.newer", path=session.path, version=record["version"])
    session.created = str(record["time"])


def _model(session: SavedSession, record: Mapping[str, Any]) -> None:
    session.asked_for = str(record["asked_for"])
    session.model, session.template = str(record["model"]), str(record["template"])


def _name(session: SavedSession, record: Mapping[str, Any]) -> None:
    session.name = str(record["name"])


def _system(session: SavedSession, record: Mapping[str, Any]) -> None:
    system = record["text"]
    session.conversation.system = None if system is None else str(system)


def _message(session: SavedSession, record: Mapping[str, Any]) -> None:
    session.unsent = as_line(str(record["text"]))


def _draft(session: SavedSession, record: Mapping[str, Any]) -> None:
    session.unsent = str(record["text"])


def _turn(session: SavedSession, record: Mapping[str, Any]) -> None:
    conversation = session.conversation
    user, reply, at = str(record["user"]), str(record["reply"]), _count(record["at"])
    interrupted, left_out = bool(record["interrupted"]), _count(record["left_out"])
    conversation.keep(at)
    conversation.drop_oldest(max(0, left_out - len(conversation.left_out)))
    if record.get("summary") is not None:
        conversation.summary = str(record["summary"])
    made = _made(record.get("made"), conversation)
    conversation.add(Turn(user, reply, interrupted, made))
    session.unsent = ""


def _made(value: Any, conversation: Conversation) -> Made | None:
    if not isinstance(value, dict):
        return None
    return Made(
        model=str(value["model"]),
        template=str(value["template"]),
        settings=dict(value["settings"]),
        prompt_tokens=int(value["prompt_tokens"]),
        prompt_digest=str(value["prompt_digest"]),
        completion_tokens=int(value["completion_tokens"]),
        finish=value["finish"],
        device=str(value.get("device", "")),
        precision=str(value.get("precision", "")),
        system=conversation.system,
        summary=conversation.summary,
        left_out=len(conversation.left_out),
        continued=bool(value.get("continued", False)),
    )


def _undo(session: SavedSession, record: Mapping[str, Any]) -> None:
    session.conversation.keep(_count(record["turns"]))
    session.unsent = ""


def _count(value: Any) -> int:
    count = int(value)
    if count < 0:
        raise ValueError(value)
    return count


_READERS = {
    "session": _session,
    "model": _model,
    "name": _name,
    "system": _system,
    "message": _message,
    "draft": _draft,
    "turn": _turn,
    "undo": _undo,
}
