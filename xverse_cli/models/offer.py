"""What happens when a model is wanted that is not on this machine: at a terminal it is offered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from xverse_cli.answers import NO, YES, YES_OR_NO
from xverse_cli.messages import error_text, text
from xverse_cli.models.find import HUB_ID, FoundModel, find_model
from xverse_cli.models.stores import PRECISIONS, begun_precision
from xverse_cli.settings import Settings
from xverse_runtime.errors import ModelNotFoundError, XverseError

if TYPE_CHECKING:
    from xverse_cli.host import Host
    from xverse_cli.models.machine_fit import FitRow
    from xverse_cli.models.pull_flow import PullWish
    from xverse_cli.models.pull_plan import PullPlan

_FETCHABLE = ("model.not_cached", "model.no_such_revision", "model.incomplete_download")


def find_or_fetch(settings: Settings, host: Host) -> FoundModel:
    """The model's directory; where it is missing, and someone is there to ask, after fetching it.

    Raises:
        ModelNotFoundError: as `find_model`, and when the offer is declined;
            ``model.packing_begun`` where fetching it and packing it as it comes was interrupted.
    """
    try:
        return find_model(settings.model, settings.precision)
    except ModelNotFoundError as error:
        streams = host.streams
        if error.code not in _FETCHABLE:
            raise
        begun = _begun(settings)
        missing = error
        if begun:
            missing = ModelNotFoundError(
                "model.packing_begun", model=settings.model, precision=begun
            )
        if not (streams.stdin_is_terminal and streams.stderr_is_terminal):
            raise missing from None
        _offer(missing, begun, settings, host)
    return find_model(settings.model, settings.precision)


def _begun(settings: Settings) -> str:
    """The precision to which the model was being packed as it came; empty if it was not."""
    match = HUB_ID.fullmatch(settings.model)
    begun = begun_precision(match["repo"], match["revision"]) if match else None
    return begun if begun and settings.precision in ("auto", begun) else ""


def _offer(missing: ModelNotFoundError, begun: str, settings: Settings, host: Host) -> None:
    """Explain, show what it takes here, ask, and fetch.

    Raises:
        ModelNotFoundError: ``missing``, where the answer is no; ``pull.offline`` or
            ``offer.no_way`` where nothing can be fetched.
    """
    from xverse_cli.models.download.huggingface import is_offline
    from xverse_cli.models.pull_flow import PullWish, command_of, pull_model
    from xverse_cli.models.pull_report import plan_lines

    streams = host.streams
    wish = PullWish(settings.model, context=settings.context, dry_run=True)
    if begun:
        wish = replace(wish, precision=begun, delete_source=True, told=True)
    elif settings.precision in PRECISIONS[1:]:
        wish = replace(wish, precision=settings.precision, delete_source=True)
    if is_offline() and missing.code == "model.not_cached":
        raise ModelNotFoundError("pull.offline", model=settings.model)
    streams.warn(error_text(missing)[0])
    try:
        plan = pull_model(wish, host).plan
    except XverseError as error:
        if error.code == "pull.no_such_model":
            raise  # the name is wrong, and how to fetch it no help
        why, command = error_text(error)[0].rstrip(".。"), command_of(wish)
        raise ModelNotFoundError(
            "offer.no_way", model=settings.model, detail=why, command=command
        ) from None
    if plan is None:
        raise missing
    if begun:
        agreed = _agrees_to_go_on(plan, host)
        wanted = wish if agreed else None
    else:
        for line in plan_lines(plan, advice=False):
            streams.say(line)
        forms = _packed_forms(plan) if settings.precision == "auto" else ()
        wanted = _choice(plan, forms, wish, host)
    if wanted is None:
        raise missing
    pull_model(replace(wanted, dry_run=False, told=True), host)


def _agrees_to_go_on(plan: PullPlan, host: Host) -> bool:
    question = text(
        "offer.go_on",
        here_bytes=plan.here_bytes,
        total_bytes=plan.total_bytes,
        fetch_bytes=plan.fetch_bytes,
    )
    return host.streams.confirm(question, default=True)


@dataclass(frozen=True)
class _Packed:
    """A packed form that may be chosen by ``key``."""

    key: str
    row: FitRow
    is_best: bool

    def line(self) -> str:
        from xverse_cli.models.pull_report import quality, rate_text

        return text(
            "offer.packed_best" if self.is_best else "offer.packed",
            answer=self.key,
            precision=self.row.precision,
            size_bytes=self.row.weight_bytes,
            rate=rate_text(self.row),
            quality=quality(self.row.precision),
        )


def _choice(
    plan: PullPlan, forms: Sequence[_Packed], wish: PullWish, host: Host
) -> PullWish | None:
    """What the user wants of what suits this machine; ``None``: nothing."""
    from xverse_cli.models.pull_report import rate_text

    streams = host.streams
    if not forms:
        agreed = streams.confirm(text("offer.question", fetch_bytes=plan.fetch_bytes))
        return wish if agreed else None
    assert plan.fit is not None
    published = plan.fit.rows[0]
    # the question would be none without its answers, even with -q
    streams.error(text("offer.published", fetch_bytes=plan.fetch_bytes, rate=rate_text(published)))
    for form in forms:
        streams.error(form.line())
    answers = {YES: YES_OR_NO[YES]}
    answers |= {form.key: (form.key, form.row.precision) for form in forms}
    answers[NO] = YES_OR_NO[NO]
    keys = "/".join(form.key for form in forms)
    answer = streams.choose(text("offer.question_packed", keys=keys), answers, NO)
    if answer == NO:
        return None
    if answer == YES:
        return wish
    chosen = next(form for form in forms if form.key == answer)
    return replace(wish, precision=chosen.row.precision, delete_source=True)


def _packed_forms(plan: PullPlan) -> tuple[_Packed, ...]:
    """The packed forms worth choosing here, the one that suits best first."""
    fit = plan.fit
    if fit is None or plan.is_store:
        return ()
    rows = [row for row in (fit.best, fit.faster) if row is not None and row != fit.rows[0]]
    return tuple(_Packed(row.precision[-1], row, row == fit.best) for row in rows)
