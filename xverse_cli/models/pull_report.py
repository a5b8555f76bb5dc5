"""The plan of a download in words."""

from __future__ import annotations

from collections.abc import Iterator

from xverse_cli.messages import figure, size, text
from xverse_cli.models.machine_fit import FitRow, MachineFit
from xverse_cli.models.pull_plan import PullPlan, free_bytes
from xverse_cli.models.selection import is_weight_file
from xverse_cli.render.moment import moment

# What packing to a precision costs: docs/quantisation.md has the figures.
_QUALITY = {"bf16": "quality.published", "int8": "quality.light", "int4": "quality.strong"}


def plan_lines(plan: PullPlan, *, advice: bool = True) -> Iterator[str]:
    """What will be fetched, where to, whether it fits, and under which licence; with ``advice``
    also which precision to choose."""
    model = plan.model
    yield text(
        "pull.plan",
        model=model.repo,
        revision=model.revision,
        commit=model.commit[:8],
        endpoint=plan.endpoint,
    )
    weights = sum(is_weight_file(file.name) for file in plan.files)
    yield text(
        "pull.plan_files",
        files=len(plan.files),
        weights=weights,
        total_bytes=plan.total_bytes,
        fetch_bytes=plan.fetch_bytes,
    )
    if plan.here_bytes:
        yield text("pull.plan_resumed", here_bytes=plan.here_bytes)
    if plan.conversion is not None:
        key = "pull.plan_streamed" if plan.conversion.delete_source else "pull.plan_converted"
        conversion = plan.conversion
        yield text(key, precision=conversion.precision, size_bytes=conversion.store_bytes)
    for place, needed in plan.disk_needs():
        yield text("pull.plan_disk", path=place, needed_bytes=needed, free_bytes=free_bytes(place))
    if plan.is_store:
        yield text("pull.plan_store")
    if plan.fit is not None:
        yield from fit_lines(plan.fit)
        if advice and plan.conversion is None:
            yield from advice_lines(plan.fit)
    licence = model.licence or text("pull.licence_untold")
    if plan.accepted is None:
        yield text("pull.licence", licence=licence)
    else:
        yield text("pull.licence_accepted", licence=licence, when=moment(plan.accepted))


def resumed_line(plan: PullPlan) -> str:
    """Where a download had come to whose plan was shown when it began."""
    model, here, total = plan.model.repo, plan.here_bytes, plan.total_bytes
    if plan.conversion is None:
        return text("pull.resuming", model=model, here_bytes=here, total_bytes=total)
    precision = plan.conversion.precision
    return text(
        "pull.resuming_packed",
        model=model,
        precision=precision,
        here_bytes=here,
        total_bytes=total,
    )


def fit_lines(fit: MachineFit) -> Iterator[str]:
    """A line for each precision: what it takes, and what holds it."""
    gpu = text("fit.gpu", name=fit.gpu_name, size_bytes=fit.gpu_bytes) if fit.gpu_bytes else ""
    yield text(
        "fit.machine",
        memory_bytes=fit.memory_bytes,
        gpu=gpu or text("fit.no_gpu"),
        context=fit.context,
    )
    for row in fit.rows:
        yield text(
            "fit.row",
            precision=row.precision.ljust(4),
            weights=size(row.weight_bytes).rjust(10),
            cache=size(row.cache_bytes),
            verdict=_verdict(row),
        )
    if fit.best is None:
        yield text("fit.nothing")


def advice_lines(fit: MachineFit) -> Iterator[str]:
    """Which precision suits this machine, and which one is faster."""
    if fit.best is not None and fit.best != fit.rows[0]:
        yield text("fit.advice", precision=fit.best.precision, quality=quality(fit.best.precision))
    if (faster := fit.faster) is not None:
        yield text("fit.faster", precision=faster.precision, quality=quality(faster.precision))


def quality(precision: str) -> str:
    """What packing to a precision costs, in a few words."""
    return text(_QUALITY[precision])


def chosen_line(precision: str, tokens_per_s: float | None) -> str:
    """What ``--precision auto`` turned out to be, and how fast that will be."""
    if tokens_per_s is None:
        return text("convert.chosen_unknown", precision=precision)
    return text("convert.chosen", precision=precision, rate=figure(tokens_per_s))


def rate_text(row: FitRow) -> str:
    """How fast it will be."""
    if row.tokens_per_s is None:
        return text("fit.rate_unknown")
    return text("fit.rate", rate=figure(row.tokens_per_s))


def _verdict(row: FitRow) -> str:
    if row.fits_gpu:
        verdict = text("fit.on_gpu")
    else:
        verdict = text("fit.in_memory") if row.fits_memory else text("fit.too_large")
    if row.tokens_per_s is None:
        return verdict
    return text("fit.with_rate", verdict=verdict, rate=rate_text(row))
