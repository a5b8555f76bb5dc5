"""What `xverse doctor` found, in lines for people."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from xverse_cli.commands.listing import fitted
from xverse_cli.doctor.advice import Step, memory_text, place_text
from xverse_cli.messages import figure, text
from xverse_cli.models.pull_report import quality
from xverse_cli.render.facts import fact_lines, remark_lines

if TYPE_CHECKING:
    from xverse_cli.doctor.system import SystemFacts
    from xverse_runtime.errors import ResourceError
    from xverse_runtime.memory_plan import MemoryPlan
    from xverse_runtime.offload.machine import Machine


@dataclass(frozen=True)
class Advice:
    """A plan, and the next step towards it."""

    plan: MemoryPlan
    step: Step


@dataclass(frozen=True)
class Diagnosis:
    """``facts`` are ``None`` of a described machine; ``refusal`` is why there is no plan.

    ``disk`` is where models go and how many bytes are free there. ``faster`` is advice that the
    user may like better than what is ``recommended``. ``from_file``: a file described the machine.
    """

    model: str
    machine: Machine
    facts: SystemFacts | None
    disk: tuple[str, int] | None
    plans: dict[str, MemoryPlan | None]
    recommended: Advice | None
    faster: Advice | None
    notes: tuple[str, ...]
    refusal: ResourceError | None
    from_file: bool


def report_lines(diagnosis: Diagnosis, width: int | None) -> Iterator[str]:
    if diagnosis.facts is None:
        yield from remark_lines(_described(diagnosis), width)
    facts = [*_system_rows(diagnosis), *_machine_rows(diagnosis.machine)]
    if diagnosis.facts is not None:
        facts += _backend_rows(diagnosis.facts)
    yield from fact_lines(facts, width)
    yield ""
    yield text("doctor.plans", model=diagnosis.model)
    rows = [heading(), *map(_plan_row, *zip(*diagnosis.plans.items(), strict=True))]
    yield from fitted(rows, width, apart=-1)
    yield from diagnosis.notes
    for advice in filter(None, (diagnosis.recommended, diagnosis.faster)):
        yield ""
        for line in _advice(advice, diagnosis):
            yield from remark_lines(line, width)
        yield f"  {advice.step.command}"


def _described(diagnosis: Diagnosis) -> str:
    key = "doctor.described" if diagnosis.from_file else "doctor.described_by_name"
    return text(key, name=diagnosis.machine.name)


def _advice(advice: Advice, diagnosis: Diagnosis) -> Iterator[str]:
    """What a plan brings and costs."""
    plan, step = advice.plan, advice.step
    rate, precision = figure(plan.prediction.tokens_per_s), plan.placement.precision
    place = place_text(plan)
    if advice is diagnosis.faster:
        yield text("doctor.faster", precision=precision, place=place, rate=rate)
    else:
        yield text("doctor.recommended", precision=precision, place=place, rate=rate)
    yield "  " + quality(precision)
    if step.store_bytes:
        yield "  " + _needs(step, diagnosis)


def _needs(step: Step, diagnosis: Diagnosis) -> str:
    """What comes over the line and what stays on the disk, beside what is free there."""
    key = "doctor.fetches" if step.fetch_bytes else "doctor.packs"
    needs = text(key, fetch_bytes=step.fetch_bytes, store_bytes=step.store_bytes)
    if diagnosis.disk is None:
        return needs
    _, free = diagnosis.disk
    enough = "doctor.disk_enough" if step.store_bytes <= free else "doctor.disk_short"
    return text(enough, needs=needs, free_bytes=free)


def _system_rows(diagnosis: Diagnosis) -> Iterator[tuple[str, str]]:
    facts = diagnosis.facts
    if facts is None:
        return
    yield text("doctor.system"), facts.system
    versions = {"Python": facts.python, "torch": facts.torch, "triton": facts.triton}
    yield text("doctor.versions"), ", ".join(f"{k} {v}" for k, v in versions.items() if v)
    yield text("doctor.processor"), facts.processor
    if facts.instructions:
        yield text("doctor.instructions"), ", ".join(facts.instructions)
    if facts.gpu is None:
        yield text("doctor.gpu"), text("doctor.no_gpu", reason=facts.no_gpu)
    else:
        driver = facts.gpu.driver or text("doctor.untold")
        capability = facts.gpu.capability
        told = text("doctor.gpu_is", name=facts.gpu.name, driver=driver, capability=capability)
        yield text("doctor.gpu"), told
    if diagnosis.disk is not None:
        place, free = diagnosis.disk
        yield text("doctor.disk"), text("doctor.disk_is", free_bytes=free, path=place)


def _machine_rows(machine: Machine) -> Iterator[tuple[str, str]]:
    if machine.has_gpu:
        told = text(
            "doctor.memory_is", total_bytes=machine.vram_total, free_bytes=machine.vram_free
        )
        yield text("doctor.gpu_memory"), told
        yield text("doctor.gpu_bandwidth"), _rate(machine.vram_bandwidth)
        yield text("doctor.link"), _rate(machine.link_to_gpu)
    told = text("doctor.memory_is", total_bytes=machine.host_total, free_bytes=machine.host_free)
    yield text("doctor.memory"), told
    yield text("doctor.bandwidth"), _rate(machine.host_bandwidth)
    rate = _rate(machine.cpu_expert_bandwidth)
    yield text("doctor.cpu_experts"), text("doctor.cores", rate=rate, cores=machine.cpu_cores)


def _backend_rows(facts: SystemFacts) -> Iterator[tuple[str, str]]:
    for backend in facts.backends:
        used = text("doctor.usable")
        if backend.name == "cpu" and facts.kernels:
            used = text("doctor.usable_with", instructions=facts.kernels)
        name = text("doctor.kernels", name=backend.name)
        yield (
            name,
            used if backend.reason is None else text("doctor.refused", reason=backend.reason),
        )


def _rate(bytes_per_s: float) -> str:
    return text("doctor.rate", rate=f"{bytes_per_s / 1e9:.1f}")


def heading() -> tuple[str, ...]:
    columns = ("precision", "kv", "context", "gpu", "memory", "rate", "first", "load", "place")
    return tuple(text(f"doctor.heading_{column}") for column in columns)


def _plan_row(precision: str, plan: MemoryPlan | None) -> tuple[str, ...]:
    if plan is None:
        return (precision, *["–"] * 7, text("doctor.no_room"))
    predicted = plan.prediction
    rate = figure(predicted.tokens_per_s)
    seconds = [f"{one:.1f} s" for one in (predicted.first_token_s, predicted.load_s)]
    placed = plan.placement
    cells = (precision, placed.kv, str(placed.context), *memory_text(plan), rate, *seconds)
    return (*cells, place_text(plan))
