"""Which model is meant, even before any download, and which command to run next."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from xverse_cli.doctor.system import system_kind
from xverse_cli.messages import size, text
from xverse_cli.models.find import DEMO, FoundModel, find_model, find_present
from xverse_cli.models.machine_fit import COMFORTABLE, MUCH_FASTER
from xverse_cli.models.names import KNOWN_MODELS
from xverse_runtime.errors import ModelNotFoundError

if TYPE_CHECKING:
    from xverse_runtime.config import ModelConfig
    from xverse_runtime.memory_plan import MemoryPlan

GIB = 2**30
LEFT_TO_WINDOWS = 4 * GIB


def known_config(model: str) -> tuple[ModelConfig, FoundModel | None]:
    """The configuration of a model: from its files, or the known one of a model that is not here.

    Raises:
        ModelNotFoundError: neither here nor known.
        XverseError: what is wrong with its files.
    """
    from xverse_runtime.config import ModelConfig
    from xverse_runtime.model_dir import ModelDirectory
    from xverse_runtime.store.synthetic import A4_2B

    try:
        found = find_present(model, "auto")
        directory = ModelDirectory.open(found.path)
        if not directory.has("config.json"):
            raise ModelNotFoundError("model.no_config", path=str(directory.path))
        return ModelConfig.from_dir(directory), found
    except ModelNotFoundError:
        if model.partition("@")[0] not in KNOWN_MODELS:
            raise
        return ModelConfig.from_dict(A4_2B), None


def store_precision_of(found: FoundModel | None) -> str | None:
    """The precision of a store that was named by its directory: it has no other."""
    from xverse_cli.models.inventory import read_object, store_precision

    if found is None or (found.name is not None and found.name != DEMO):
        return None
    manifest = found.path / "xverse.json"
    return store_precision(read_object(manifest)) if manifest.is_file() else None


@dataclass(frozen=True)
class Step:
    """One command, the bytes that it has to fetch, and those of the store that it will make."""

    command: str
    fetch_bytes: int = 0
    store_bytes: int = 0


def next_step(
    model: str, plan: MemoryPlan, *, here: bool = True, context: int | None = None
) -> Step:
    """The one command that brings a plan about: fetch, convert, or talk.

    Args:
        model: what the user calls it.
        plan: what is to run.
        here: whether the plan is for this machine, so that what lies here counts.
        context: tokens that were asked for.
    """
    from xverse_runtime.model_sizes import ModelSizes
    from xverse_runtime.store.precision import PRESETS

    precision, store = plan.placement.precision, plan.placement.sizes.weights()
    wished = f" --context {context}" if context else ""
    if model == DEMO:
        return Step(f"xverse chat --model {DEMO}{wished}")
    named = f" --model {model}"
    rounded = " --kv int8" if plan.placement.kv == "int8" else ""  # said aloud, as it costs quality
    talk = f"xverse chat{named} --precision {precision}{rounded}{wished}"
    try:
        found = find_model(model, precision) if here else None
    except ModelNotFoundError:
        found = None
    if found is None and "/" in model and not Path(model).exists():
        fetched = ModelSizes(plan.placement.sizes.config, PRESETS["bf16"]).weights()
        pull = f"xverse pull {model} --precision {precision} --delete-source"
        return Step(pull, fetched, store)
    if found is None or precision == "bf16" or (found.path / "xverse.json").is_file():
        return Step(talk)
    return Step(f"xverse convert {model} --precision {precision}", store_bytes=store)


def much_faster(chosen: MemoryPlan, plans: Iterable[MemoryPlan | None]) -> MemoryPlan | None:
    """A plan so much faster than the chosen one that the user may like it better, if speed is short
    at all; see `MachineFit.faster`."""
    rate = chosen.prediction.tokens_per_s
    if rate >= COMFORTABLE:
        return None
    made = [plan for plan in plans if plan is not None]
    best = max(made, key=lambda plan: plan.prediction.tokens_per_s, default=chosen)
    return best if best.prediction.tokens_per_s >= MUCH_FASTER * rate else None


def system_notes(plan: MemoryPlan | None, host_total: int, kind: str | None = None) -> list[str]:
    """What to know about this kind of system; ``kind`` as in `SystemFacts`.

    Args:
        plan: for what the store needs.
        host_total: bytes of main memory.
        kind: this system's when not given.
    """
    kind = kind or system_kind()
    needed = plan.placement.sizes.weights() if plan else 0
    notes = []
    if kind == "windows":
        memory = max(1, (host_total - LEFT_TO_WINDOWS) // GIB)
        notes.append(text("doctor.windows", store_bytes=needed))
        notes.append(text("doctor.windows_install"))
        notes.append(text("doctor.windows_memory", memory=memory))
        notes.append(text("doctor.windows_again"))
    elif kind == "mac":
        rate = f"{plan.prediction.tokens_per_s:.1f}" if plan else "?"
        notes.append(text("doctor.mac", rate=rate))
    elif kind == "wsl" and host_total < needed + 2 * GIB:
        notes.append(text("doctor.wsl_memory", host_bytes=host_total, store_bytes=needed))
    return notes


def place_text(plan: MemoryPlan) -> str:
    """Where a plan's experts are: ``GPU``, ``GPU, 19.7 of 64 experts a layer``, ``CPU``."""
    placed = plan.placement
    if placed.device == "cpu":
        return text("doctor.on_cpu")
    if placed.experts_resident:
        return text("doctor.on_gpu")
    slots, experts = f"{placed.slots_per_layer:.1f}", placed.sizes.config.num_experts
    return text("doctor.in_slots", slots=slots, experts=experts)


def memory_text(plan: MemoryPlan) -> tuple[str, str]:
    """GPU and main memory that a plan takes."""
    placed = plan.placement
    return size(placed.gpu) if placed.gpu else "–", size(placed.host + placed.mapped)
