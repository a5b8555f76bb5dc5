"""A conversation as a document: Markdown to read, JSON to go on working with."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from xverse_cli.chat.sessions.reading import SavedSession
from xverse_cli.chat.sessions.recorder import made_record
from xverse_cli.json_output import to_json
from xverse_cli.messages import text
from xverse_runtime.errors import UsageError


def export_to(path: Path, session: SavedSession, kind: str | None = None) -> Path:
    """Write the document to a new file.

    Args:
        kind: ``markdown`` or ``json``; otherwise JSON if the file's name ends so.

    Raises:
        UsageError: ``export.exists`` or ``export.unwritable``.
    """
    kind = kind or ("json" if path.suffix.lower() == ".json" else "markdown")
    try:
        # Conversations are nobody else's business, and no file is written over.
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(exported(session, kind).encode("utf-8", "replace"))
    except FileExistsError:
        raise UsageError("export.exists", path=path) from None
    except OSError as error:
        detail = error.strerror or str(error)
        raise UsageError("export.unwritable", path=path, detail=detail) from None
    return path


def exported(session: SavedSession, kind: str) -> str:
    """The whole conversation, turns that the model is no longer told of included."""
    return to_json(_object(session)) + "\n" if kind == "json" else _markdown(session)


def _object(session: SavedSession) -> dict[str, Any]:
    conversation = session.conversation
    return {
        "session": session.id,
        "name": session.name or None,
        "created": session.created or None,
        "model": session.asked_for,
        "system": conversation.system,
        "left_out": len(conversation.left_out),
        "summary": conversation.summary,
        "turns": [
            {
                "user": turn.user,
                "assistant": turn.assistant,
                "interrupted": turn.interrupted,
                "made": made_record(turn.made) if turn.made else None,
            }
            for turn in conversation.all_turns
        ],
    }


def _markdown(session: SavedSession) -> str:
    conversation = session.conversation
    parts = [f"# {session.title or session.id}"]
    about = [session.asked_for, session.created]
    if any(about):
        parts.append(" · ".join(part for part in about if part))
    if conversation.system:
        parts += [f"## {text('export.system')}", conversation.system]
    for turn in conversation.all_turns:
        parts += [f"## {text('export.user')}", turn.user]
        parts += [f"## {text('export.assistant')}", turn.assistant.rstrip("\n")]
        if turn.interrupted:
            parts.append(f"*{text('export.interrupted')}*")
    return "\n\n".join(parts) + "\n"
