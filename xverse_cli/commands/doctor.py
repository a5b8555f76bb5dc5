"""`xverse doctor`: this machine as the runtime sees it, and how well a model will run on it."""

# No postponed annotations: Typer would compile every one of them anew on each start.

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from xverse_cli import options
from xverse_cli.exit_codes import DONE
from xverse_cli.host import Host, Job
from xverse_cli.messages import text, worded_in
from xverse_runtime.errors import ResourceError

if TYPE_CHECKING:
    from xverse_cli.doctor.report import Diagnosis
    from xverse_cli.settings import Settings
    from xverse_runtime.memory_plan import MemoryPlan

Gpu = Annotated[
    str | None,
    typer.Option("--gpu", metavar="GPU", help=text("help.doctor_gpu"), show_default=False),
]


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
        from xverse_cli.doctor.report import report_lines
        from xverse_cli.render.sanitize import sanitize

        width = host.streams.stdout_columns
        lines = (sanitize(line) for line in report_lines(diagnosis, width))
        host.streams.write_data("".join(f"{line}\n" for line in lines))
    if diagnosis.refusal is not None:
        raise diagnosis.refusal
    return DONE


def _diagnose(settings: "Settings", gpu: str | None) -> "Diagnosis":
    from dataclasses import replace

    from xverse_cli.doctor.advice import (
        known_config,
        much_faster,
        next_step,
        store_precision_of,
        system_notes,
    )
    from xverse_cli.doctor.report import Advice, Diagnosis
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
    recommended, faster = None, None
    if chosen is not None:
        follow = partial(next_step, settings.model, here=here, context=settings.context)
        recommended = Advice(chosen, follow(chosen))
        if precision == "auto" and (other := much_faster(chosen, plans.values())) is not None:
            faster = Advice(other, follow(other))
    return Diagnosis(
        settings.model,
        machine,
        facts,
        (str(stores_dir()), free_bytes(stores_dir())) if here else None,
        plans,
        recommended,
        faster,
        tuple(notes),
        refusal,
        from_file=gpu is not None and gpu.lower().endswith(".toml"),
    )


def _object(diagnosis: "Diagnosis") -> dict[str, Any]:
    facts, refusal = diagnosis.facts, diagnosis.refusal
    chosen, faster = diagnosis.recommended, diagnosis.faster
    return {
        "model": diagnosis.model,
        "described": facts is None,
        "system": asdict(facts) if facts else None,
        "machine": asdict(diagnosis.machine),
        "disk": dict(zip(("path", "free_bytes"), diagnosis.disk, strict=True))
        if diagnosis.disk
        else None,
        "plans": {name: plan and _plan_object(plan) for name, plan in diagnosis.plans.items()},
        "chosen": chosen and chosen.plan.placement.precision,
        "command": chosen and chosen.step.command,
        "fetch_bytes": chosen and chosen.step.fetch_bytes,
        "store_bytes": chosen and chosen.step.store_bytes,
        "faster": faster and faster.plan.placement.precision,
        "faster_command": faster and faster.step.command,
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
