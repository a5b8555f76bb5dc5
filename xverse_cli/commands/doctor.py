"""`xverse doctor`: this machine as the runtime sees it, and how well a model will run on it."""

# No postponed annotations: Typer would compile every one of them anew on each start.

from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from xverse_cli import options
from xverse_cli.exit_codes import DONE
from xverse_cli.host import Host, Job
from xverse_cli.messages import figure, text, worded_in
from xverse_runtime.errors import ResourceError

if TYPE_CHECKING:
    from xverse_cli.doctor.system import SystemFacts
    from xverse_cli.settings import Settings
    from xverse_runtime.memory_plan import MemoryPlan
    from xverse_runtime.offload.machine import Machine

Gpu = Annotated[
    str | None,
    typer.Option("--gpu", metavar="GPU", help=text("help.doctor_gpu"), show_default=False),
]


@dataclass(frozen=True)
class Diagnosis:
    """``facts`` are ``None`` of a described machine; ``refusal`` is why there is no plan.

    ``faster`` is another plan, and its command, that the user may like better than the chosen one.
    """

    model: str
    machine: "Machine"
    facts: "SystemFacts | None"
    disk: tuple[str, int] | None
    plans: "dict[str, MemoryPlan | None]"
    chosen: "MemoryPlan | None"
    command: str | None
    faster: "tuple[MemoryPlan, str] | None"
    notes: tuple[str, ...]
    refusal: ResourceError | None


def register(app: typer.Typer) -> None:
    app.command("doctor", help=text("help.doctor"))(doctor)


def doctor(
    ctx: typer.Context,
    model: options.Model = None,
    gpu: Gpu = None,
    device: options.Device = None,
    precision: options.Precision = None,
    context: options.Context = None,
    kv: options.Kv = None,
    gpu_memory: options.GpuMemory = None,
    cpu_memory: options.CpuMemory = None,
    as_json: options.Json = False,
    verbose: options.Verbose = 0,
    quiet: options.Quiet = False,
) -> Job:
    return Job(partial(run, ctx.params, gpu, as_json), options.verbosity(verbose, quiet))


def run(flags: Mapping[str, object], gpu: str | None, as_json: bool, host: Host) -> int:
    """Look, plan, tell; a model that cannot run is told like everything else, then an error."""
    settings = host.settings(flags)
    with worded_in("en") if as_json else nullcontext():
        diagnosis = _diagnose(settings, gpu)
    if as_json:
        from xverse_cli.json_output import to_json

        host.streams.write_data(to_json(_object(diagnosis)) + "\n")
    else:
        from xverse_cli.render.sanitize import sanitize

        width = host.streams.stdout_columns
        lines = (sanitize(line) for line in _lines(diagnosis, width))
        host.streams.write_data("".join(f"{line}\n" for line in lines))
    if diagnosis.refusal is not None:
        raise diagnosis.refusal
    return DONE


def _diagnose(settings: "Settings", gpu: str | None) -> Diagnosis:
    from dataclasses import replace

    from xverse_cli.doctor.advice import (
        known_config,
        much_faster,
        next_command,
        store_precision_of,
        system_notes,
    )
    from xverse_cli.doctor.system import look_at_system
    from xverse_cli.models.pull_plan import free_bytes
    from xverse_cli.models.stores import stores_dir
    from xverse_runtime.memory_plan import Wishes, plan_memory, plans_by_precision
    from xverse_runtime.offload.machines import find_machine

    config, found = known_config(settings.model)
    if gpu is None:
        from xverse_runtime.offload.measure import measure_machine

        facts, device = look_at_system()
        machine = measure_machine(device)
    else:
        facts, machine = None, find_machine(gpu)
    only = store_precision_of(found)
    precision = only if only and settings.precision == "auto" else settings.precision
    wishes = Wishes(
        device=settings.device,
        precision=precision,
        context=settings.context,
        kv=settings.kv,
        gpu_memory=settings.gpu_memory,
        cpu_memory=settings.cpu_memory,
    )
    chosen, refusal = None, None
    try:
        chosen = plan_memory(config, machine, wishes)
    except ResourceError as error:
        refusal = error
    every = replace(wishes, precision=only or "auto")
    plans = plans_by_precision(config, machine, every)
    here = facts is not None
    notes = system_notes(chosen, machine.host_total) if here else []
    command, faster = None, None
    if chosen is not None:
        follow = partial(next_command, settings.model, here=here, context=settings.context)
        command = follow(chosen)
        if precision == "auto" and (other := much_faster(chosen, plans.values())) is not None:
            faster = other, follow(other)
    return Diagnosis(
        settings.model,
        machine,
        facts,
        (str(stores_dir()), free_bytes(stores_dir())) if here else None,
        plans,
        chosen,
        command,
        faster,
        tuple(notes),
        refusal,
    )


def _lines(diagnosis: Diagnosis, width: int | None) -> Iterator[str]:
    from xverse_cli.commands.listing import aligned, fitted

    if diagnosis.facts is None:
        yield text("doctor.described", name=diagnosis.machine.name)
    yield from aligned([*_system_rows(diagnosis), *_machine_rows(diagnosis.machine)])
    if diagnosis.facts is not None:
        yield from aligned(_backend_rows(diagnosis.facts))
    yield ""
    yield text("doctor.plans", model=diagnosis.model)
    rows = [_heading(), *map(_plan_row, *zip(*diagnosis.plans.items(), strict=True))]
    yield from fitted(rows, width, apart=-1)
    yield from diagnosis.notes
    if diagnosis.chosen is not None and diagnosis.command is not None:
        yield from _advice(diagnosis.chosen, diagnosis.command, faster=False)
    if diagnosis.faster is not None:
        yield from _advice(*diagnosis.faster, faster=True)


def _advice(plan: "MemoryPlan", command: str, *, faster: bool) -> Iterator[str]:
    """What a plan brings and costs, and the command that brings it about."""
    from xverse_cli.doctor.advice import place_text
    from xverse_cli.models.pull_report import quality

    rate, precision = figure(plan.prediction.tokens_per_s), plan.placement.precision
    place = place_text(plan)
    yield ""
    if faster:
        yield text("doctor.faster", precision=precision, place=place, rate=rate)
    else:
        yield text("doctor.recommended", precision=precision, place=place, rate=rate)
    yield "  " + quality(precision)
    yield f"  {command}"


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


def _machine_rows(machine: "Machine") -> Iterator[tuple[str, str]]:
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


def _backend_rows(facts: "SystemFacts") -> Iterator[tuple[str, str]]:
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


def _heading() -> tuple[str, ...]:
    columns = ("precision", "kv", "context", "gpu", "memory", "rate", "first", "load", "place")
    return tuple(text(f"doctor.heading_{column}") for column in columns)


def _plan_row(precision: str, plan: "MemoryPlan | None") -> tuple[str, ...]:
    from xverse_cli.doctor.advice import memory_text, place_text

    if plan is None:
        return (precision, *["–"] * 7, text("doctor.no_room"))
    predicted = plan.prediction
    rate = figure(predicted.tokens_per_s)
    seconds = [f"{one:.1f} s" for one in (predicted.first_token_s, predicted.load_s)]
    placed = plan.placement
    cells = (precision, placed.kv, str(placed.context), *memory_text(plan), rate, *seconds)
    return (*cells, place_text(plan))


def _object(diagnosis: Diagnosis) -> dict[str, Any]:
    facts, refusal = diagnosis.facts, diagnosis.refusal
    return {
        "model": diagnosis.model,
        "described": facts is None,
        "system": asdict(facts) if facts else None,
        "machine": asdict(diagnosis.machine),
        "disk": dict(zip(("path", "free_bytes"), diagnosis.disk, strict=True))
        if diagnosis.disk
        else None,
        "plans": {name: plan and _plan_object(plan) for name, plan in diagnosis.plans.items()},
        "chosen": diagnosis.chosen and diagnosis.chosen.placement.precision,
        "command": diagnosis.command,
        "faster": diagnosis.faster and diagnosis.faster[0].placement.precision,
        "faster_command": diagnosis.faster and diagnosis.faster[1],
        "notes": [*diagnosis.notes],
        "refusal": {"code": refusal.code, **refusal.params} if refusal else None,
    }


def _plan_object(plan: "MemoryPlan") -> dict[str, Any]:
    placed = plan.placement
    return {
        "device": placed.device,
        "precision": placed.precision,
        "parts": asdict(placed.sizes.precision),
        "context": placed.context,
        "kv": placed.kv,
        "embedding_device": placed.embedding_device,
        "expert_slots": placed.expert_slots,
        "slots_per_layer": placed.slots_per_layer,
        "experts_resident": placed.experts_resident,
        "prefill_chunk": placed.prefill_chunk,
        "workspace_bytes": placed.workspace,
        "steps_bytes": placed.steps,
        "staging_bytes": placed.staging,
        "kv_bytes": placed.kv_bytes,
        "gpu_bytes": placed.gpu,
        "gpu_budget_bytes": plan.gpu_budget,
        "pinned_bytes": placed.pinned,
        "host_bytes": placed.host,
        "mapped_bytes": placed.mapped,
        "host_budget_bytes": plan.host_budget,
        "prediction": asdict(plan.prediction),
    }
