"""Words an error of any kind for the user."""

from __future__ import annotations

import traceback

from xverse_cli import settings
from xverse_cli.host import Host
from xverse_cli.messages import error_text, text
from xverse_runtime.errors import XverseError


def say_error(error: BaseException, host: Host) -> None:
    """Say on stderr what went wrong and what to try next; the traceback only on request."""
    for line in _lines(error):
        host.streams.error(line)
    if settings.debug(host.environ) or host.streams.verbosity >= 2:
        host.streams.error("".join(traceback.format_exception(error)))


def _lines(error: BaseException) -> list[str]:
    if isinstance(error, XverseError):
        message, hint = error_text(error)
        first = text("error", message=message)
        return [first, hint] if hint else [first]
    if isinstance(error, MemoryError):
        return [text("error.memory")]
    if isinstance(error, OSError) and error.strerror:
        place = f": {error.filename}" if error.filename else ""
        return [text("error.system", detail=error.strerror + place)]
    unexpected = text("error.unexpected", kind=type(error).__name__, detail=str(error))
    return [unexpected, text("error.unexpected_hint")]
