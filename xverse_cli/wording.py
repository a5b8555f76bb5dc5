"""Words an error of any kind for the user."""

from __future__ import annotations

import traceback

from xverse_cli import settings
from xverse_cli.host import Host
from xverse_cli.messages import detail, error_text, text
from xverse_runtime.errors import XverseError


def say_error(error: BaseException, host: Host, place: str = "") -> None:
    """Say on stderr what went wrong and what to try next; the traceback only on request.

    Args:
        place: which of several inputs it was, if there are several.
    """
    message, hint = _words(error)
    at_place = text("error.at", place=place, message=message)
    host.streams.error(at_place if place else text("error", message=message))
    if hint:
        host.streams.error(hint)
    if settings.debug(host.environ) or host.streams.verbosity >= 2:
        host.streams.error("".join(traceback.format_exception(error)))


def _words(error: BaseException) -> tuple[str, str]:
    """Message and hint."""
    if isinstance(error, XverseError):
        return error_text(error)
    if isinstance(error, MemoryError):
        return text("error.memory"), ""
    if isinstance(error, OSError) and error.strerror:
        problem, place = detail(error.strerror), error.filename
        return text("error.system", problem=problem, place=place) if place else problem, ""
    unexpected = text("error.unexpected", kind=type(error).__name__, detail=str(error))
    return unexpected, text("error.unexpected_hint")
