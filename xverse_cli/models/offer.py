"""What happens when a model is wanted that is not on this machine: at a terminal it is offered."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from xverse_cli.messages import error_text, text
from xverse_cli.models.find import FoundModel, find_model
from xverse_cli.settings import Settings
from xverse_runtime.errors import ModelNotFoundError, XverseError

if TYPE_CHECKING:
    from xverse_cli.host import Host
    from xverse_cli.models.pull_plan import PullPlan

_FETCHABLE = ("model.not_cached", "model.no_such_revision", "model.incomplete_download")


def find_or_fetch(settings: Settings, host: Host) -> FoundModel:
    """The model's directory; where it is missing, and someone is there to ask, after fetching it.

    Raises:
        ModelNotFoundError: as `find_model`, and when the offer is declined.
    """
    try:
        return find_model(settings.model, settings.precision)
    except ModelNotFoundError as error:
        streams = host.streams
        if error.code not in _FETCHABLE:
            raise
        if not (streams.stdin_is_terminal and streams.stderr_is_terminal):
            raise
        _offer(error, settings, host)
    return find_model(settings.model, settings.precision)


def _offer(missing: ModelNotFoundError, settings: Settings, host: Host) -> None:
    """Explain, show what it takes here, ask, and fetch.

    Raises:
        ModelNotFoundError: ``missing``, where the answer is no or nothing can be fetched.
    """
    from xverse_cli.models.pull_flow import PullWish, pull_model
    from xverse_cli.models.pull_report import plan_lines

    streams = host.streams
    wish = PullWish(settings.model, context=settings.context, dry_run=True)
    streams.warn(error_text(missing)[0])
    try:
        plan = pull_model(wish, host).plan
    except XverseError as error:
        streams.warn(error_text(error)[0])
        raise missing from None
    if plan is None:
        raise missing
    for line in plan_lines(plan):
        streams.say(line)
    smaller = _smaller(plan)
    key = "offer.question_smaller" if smaller else "offer.question"
    answer = streams.ask(text(key, fetch_bytes=plan.fetch_bytes, precision=smaller))
    if answer[:1] not in ("y", "s") or (answer[:1] == "s" and not smaller):
        raise missing
    wanted = replace(wish, dry_run=False, told=True)
    if answer[:1] == "s":
        wanted = replace(wanted, precision=smaller, delete_source=True)
    pull_model(wanted, host)


def _smaller(plan: PullPlan) -> str:
    """A precision that suits this machine better than the published one, if there is such."""
    best = plan.fit.best if plan.fit else None
    if plan.is_store or best is None or plan.fit is None:
        return ""
    return best.precision if best.precision != plan.fit.rows[0].precision else ""
