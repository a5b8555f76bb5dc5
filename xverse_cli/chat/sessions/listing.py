"""Sessions in a line or two each."""

from __future__ import annotations

from collections.abc import Iterable

from xverse_cli.chat.sessions.reading import SavedSession
from xverse_cli.messages import text
from xverse_cli.render.moment import moment


def session_rows(sessions: Iterable[SavedSession], current: str = "") -> list[str]:
    """A line for each: id, when, how many turns, title; ``current`` is marked."""
    return [
        text(
            "session.row",
            mark="*" if session.id == current else " ",
            session=session.id,
            when=moment(session.changed),
            turns=len(session.conversation.all_turns),
            title=session.title,
        )
        for session in sessions
    ]


def resumed_lines(session: SavedSession) -> list[str]:
    """Where a session had come to."""
    turns = session.conversation.all_turns
    name = f"{session.id} ({session.name})" if session.name else session.id
    lines = [text("session.resumed", session=name, turns=len(turns))]
    if turns:
        lines.append(text("show.message", number=len(turns), words=turns[-1].user))
        lines.append(turns[-1].assistant.rstrip("\n"))
        if turns[-1].interrupted:
            lines.append(text("show.interrupted"))
    if session.unsent:
        lines.append(text("session.unsent"))
    return lines
