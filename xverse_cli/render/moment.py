"""Times, in one style everywhere."""

from __future__ import annotations

from datetime import datetime


def moment(when: str | float | None) -> str:
    """``2026-11-24 22:13`` in the user's time zone; a dash where it is not known.

    Args:
        when: ISO 8601, or seconds since the epoch.
    """
    try:
        known = datetime.fromtimestamp(when) if isinstance(when, (int, float)) else _read(when)
    except (ValueError, OSError, OverflowError):
        return "–"
    return known.strftime("%Y-%m-%d %H:%M")


def _read(stamp: str | None) -> datetime:
    return datetime.fromisoformat(stamp or "").astimezone()
