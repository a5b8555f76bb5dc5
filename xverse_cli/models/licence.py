"""Under which terms weights are given, and who has accepted them when."""

from __future__ import annotations

import json
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path

from filelock import FileLock

from xverse_cli.settings import state_dir
from xverse_runtime.durable import write_durably

_FILE = "licences.json"


def accepted(repo: str) -> str | None:
    """When the licence of a model was accepted on this machine (ISO 8601), or ``None``."""
    when = _read().get(repo)
    return when if isinstance(when, str) else None


def accept(repo: str) -> None:
    """Record that the licence of a model was accepted now."""
    path = _path()
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(_FILE + ".lock")):
        _record(path, repo)


def _record(path: Path, repo: str) -> None:
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    text = json.dumps({**_read(), repo: now}, indent=2, ensure_ascii=False)
    write_durably(path, text.encode() + b"\n")


def _path() -> Path:
    return state_dir() / _FILE


def _read() -> dict[str, object]:
    with suppress(OSError, ValueError):
        found = json.loads(_path().read_bytes())
        if isinstance(found, dict):
            return found
    return {}
