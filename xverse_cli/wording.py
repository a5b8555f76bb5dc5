"""Words an error of any kind for the user."""

from __future__ import annotations

import traceback

from xverse_cli import settings
from xverse_cli.host import Host
from xverse_cli.messages import detail, error_text, text
from xverse_runtime.errors import XverseError

# Errors that name a model which is not there.
_NAMELESS = (
    "model.unknown_name",
    "model.not_cached",
    "pull.no_hub_id",
    "pull.no_such_model",
    "rm.nothing",
)


def say_error(error: BaseException, host: Host, place: str = "") -> None:
    """Say on stderr what went wrong and what to try next; the traceback only on request.

    Args:
        place: which of several inputs it was, if there are several.
    """
    message, hint = _words(error)
    at_place = text("error.at", place=place, message=message)
    host.streams.error(at_place if place else text("error", message=message))
    if guess := _meant(error):
        host.streams.error(text("error.did_you_mean", nearest=guess))
    if hint:
        host.streams.error(hint)
    if settings.debug(host.environ) or host.streams.verbosity >= 2:
        host.streams.error("".join(traceback.format_exception(error)))


def _meant(error: BaseException) -> str | None:
    """The model that a name which is nothing was probably meant for."""
    if not isinstance(error, XverseError) or error.code not in _NAMELESS:
        return None
    from xverse_cli.models.inventory import stored_models
    from xverse_cli.models.names import nearest

    try:
        local = [model.hub_id for model in stored_models() if "/" in model.name]
    except OSError:
        local = []
    return nearest(str(error.params.get("model", "")), local)


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
