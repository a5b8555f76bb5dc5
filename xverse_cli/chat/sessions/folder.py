"""Where sessions lie, and which there are."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from xverse_cli.chat.sessions.journal import close_locked, lock
from xverse_cli.chat.sessions.reading import SavedSession, read_session
from xverse_cli.settings import state_dir
from xverse_runtime.errors import UsageError, XverseError

SUFFIX = ".jsonl"


def sessions_dir() -> Path:
    return state_dir() / "sessions"


def new_session_path() -> Path:
    """The file of a session that begins now; its name tells when, and from all others."""
    now = datetime.now().strftime("%Y%m%d-%H%M%S")
    return sessions_dir() / f"{now}-{secrets.token_hex(3)}{SUFFIX}"


def session_paths() -> list[Path]:
    """The files of all sessions, the one last written to first."""
    with suppress(OSError):
        found = [path for path in sessions_dir().iterdir() if path.suffix == SUFFIX]
        return sorted(found, key=_changed, reverse=True)
    return []


def saved_sessions() -> Iterator[SavedSession]:
    """All sessions that can be read, the one last written to first."""
    for path in session_paths():
        with suppress(XverseError):
            yield read_session(path)


def find_session(wanted: str) -> SavedSession:
    """The session of an id, a part of one, or a name.

    Raises:
        UsageError: ``session.not_found`` or ``session.ambiguous``; what `read_session` raises.
    """
    paths = session_paths()
    exact = [path for path in paths if path.stem == wanted]
    if not exact:
        exact = [one.path for one in saved_sessions() if one.name == wanted]
    matches = exact or [path for path in paths if wanted and wanted in path.stem]
    if not matches:
        raise UsageError("session.not_found", session=wanted)
    if len(matches) > 1:
        names = [path.stem for path in matches]
        raise UsageError("session.ambiguous", session=wanted, matches=names)
    return read_session(matches[0])


def latest_session() -> SavedSession:
    """The session that was last written to and is not open elsewhere.

    Raises:
        UsageError: ``session.none``, or what is wrong with the latest where none can be gone on
            with: ``session.in_use``, or what `read_session` raises.
    """
    first: XverseError | None = None
    for path in session_paths():
        try:
            if not in_use(path):
                return read_session(path)
            first = first or UsageError("session.in_use", session=path.stem)
        except XverseError as error:
            first = first or error
    raise first or UsageError("session.none")


def in_use(path: Path) -> bool:
    """Whether a chat has the session open."""
    try:
        descriptor = os.open(path, os.O_RDWR)
    except OSError:
        return False
    try:
        return not lock(descriptor)
    finally:
        close_locked(descriptor)


def remove_session(path: Path) -> None:
    """Delete a session.

    Raises:
        UsageError: ``session.in_use``.
        OSError: it cannot be deleted.
    """
    if in_use(path):
        raise UsageError("session.in_use", session=path.stem)
    path.unlink(missing_ok=True)


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
