"""When a model was last run: the time of an empty file named after the model's path."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from pathlib import Path

from xverse_cli.settings import state_dir


def record(model: Path) -> None:
    """The model in this directory has just been loaded. Best effort: it is never an error."""
    mark = _mark(model)
    with suppress(OSError):
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()


def last_use(model: Path) -> float | None:
    """When it was last loaded, in seconds since the epoch; ``None`` where that is not known."""
    with suppress(OSError):
        return _mark(model).stat().st_mtime
    return None


def forget(model: Path) -> None:
    """The model is gone."""
    with suppress(OSError):
        _mark(model).unlink()


def _mark(model: Path) -> Path:
    digest = hashlib.sha256(str(model.absolute()).encode("utf-8", "surrogateescape"))
    return state_dir() / "used" / digest.hexdigest()[:32]
