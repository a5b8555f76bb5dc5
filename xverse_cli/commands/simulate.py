"""`xverse bench --simulate`: a machine that need not be there, and what its policies would do."""

# No postponed annotations: Typer would compile every one of them anew on each start.

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xverse_cli.exit_codes import DONE
from xverse_cli.host import Host
from xverse_cli.messages import text
from xverse_runtime.errors import UsageError

if TYPE_CHECKING:
    from xverse_cli.settings import Settings
    from xverse_runtime.memory_plan import MemoryPlan
    from xverse_runtime.offload.machine import Machine
    from xverse_runtime.offload.simulator_compare import Outcome
    from xverse_runtime.offload.simulator_report import PromptReport
    from xverse_runtime.offload.trace import RoutedToken

NEW_TOKENS, PROMPT_TOKENS = 256, 512
LEAST_RECORDED = 16  # tokens of a trace; half of them warm up
# Options of real runs that mean nothing here.
_OF_REAL_RUNS = ("threads", "backend", "cuda_graph", "rounds")


@dataclass(frozen=True)
class SimulationRequest:
    """What the command line asks for.

    Args:
        flags: of the settings.
        machine: its name or file; this one without it.
        slots: experts of a layer on the GPU, instead of what fits.
        routing: a recorded trace.
        prompt_tokens, new_tokens: lengths; ``None`` is the default.
        as_json: print an object instead of a table.
    """

    flags: Mapping[str, object]
    machine: str | None
    slots: int | None
    routing: Path | None
    prompt_tokens: int | None
    new_tokens: int | None
    as_json: bool


def run(request: SimulationRequest, host: Host) -> int:
    """Plan, simulate, print."""
    from xverse_cli.doctor.advice import known_config, store_precision_of
    from xverse_runtime.memory_plan import Wishes, plan_memory
    from xverse_runtime.offload.simulator_compare import Comparison, with_slots
    from xverse_runtime.prediction import predict

    settings = host.settings(request.flags)
    _check(request, settings)
    config, found = known_config(settings.model)
    machine = _machine(request.machine)
    only = store_precision_of(found)
    precision = only if only and settings.precision == "auto" else settings.precision
    wishes = Wishes(
        device="cuda",
        precision=precision,
        context=settings.context,
        kv=settings.kv,
        gpu_memory=settings.gpu_memory,
        cpu_memory=settings.cpu_memory,
    )
    plan = plan_memory(config, machine, wishes)
    if request.slots is not None and config.is_moe:
        placement = with_slots(plan.placement, request.slots)
        plan = replace(plan, placement=placement, prediction=predict(placement, machine))
    tokens, warm_up = _tokens(request, plan)
    comparison = Comparison(plan.placement, machine, tokens, warm_up)
    outcomes = []
    for outcome in comparison.outcomes():
        outcomes.append(outcome)
        count, of = len(outcomes), len(comparison.cases)
        host.streams.say(text("simulate.round", number=count, rounds=of), level=1)
    prompt = comparison.prompt(_prompt(request, plan, tokens))
    told = _Told(settings.model, machine, plan, request.routing, outcomes, prompt)
    if request.as_json:
        from xverse_cli.json_output import to_json

        host.streams.write_data(to_json(told.as_object()) + "\n")
    else:
        from xverse_cli.render.comparison import print_comparison

        print_comparison(told.heading(), told.rows(), told.bars(), told.footing(), host.streams)
    return DONE


def _check(request: SimulationRequest, settings: "Settings") -> None:
    """Refuse what only real runs can do."""
    for option in _OF_REAL_RUNS:
        if request.flags.get(option) is not None:
            raise UsageError("simulate.real_only", option=option.replace("_", "-"))
    if request.flags.get("synthetic") is not None:
        raise UsageError("simulate.real_only", option="synthetic")
    if request.flags.get("device") is not None and settings.device == "cpu":
        raise UsageError("simulate.real_only", option="device cpu")


def _machine(name: str | None) -> "Machine":
    """The described machine, or this one."""
    from xverse_runtime.offload.machines import find_machine, known_machines

    if name is not None:
        machine = find_machine(name)
    else:
        from xverse_cli.doctor.system import look_at_system
        from xverse_runtime.offload.measure import measure_machine

        machine = measure_machine(look_at_system()[1])
    if not machine.has_gpu:
        raise UsageError(
            "simulate.no_gpu", name=machine.name, known=[one.name for one in known_machines()]
        )
    return machine


def _tokens(request: SimulationRequest, plan: "MemoryPlan") -> "tuple[list[RoutedToken], int]":
    """The trace, and how much of it warms up."""
    from xverse_runtime.offload.simulator_compare import WARM_UP, check_trace, made_up_tokens
    from xverse_runtime.offload.trace import tokens_of
    from xverse_runtime.offload.trace_file import TraceReader

    config = plan.placement.sizes.config
    if not config.is_moe:
        raise UsageError("simulate.dense")
    new_tokens = request.new_tokens or NEW_TOKENS
    if request.routing is None:
        return made_up_tokens(config, WARM_UP + new_tokens), WARM_UP
    reader = TraceReader(request.routing)
    check_trace(reader.header, config)
    tokens = tokens_of(reader)
    if len(tokens) < LEAST_RECORDED:
        path = str(request.routing)
        raise UsageError("simulate.short", path=path, tokens=len(tokens), least=LEAST_RECORDED)
    warm_up = min(WARM_UP, len(tokens) // 2)
    return tokens[: warm_up + new_tokens], warm_up


def _prompt(
    request: SimulationRequest, plan: "MemoryPlan", tokens: "list[RoutedToken]"
) -> "list[RoutedToken]":
    """The prompt: a text of its own, or the beginning of the recorded one."""
    from xverse_runtime.offload.simulator_compare import made_up_tokens

    length = min(request.prompt_tokens or PROMPT_TOKENS, plan.placement.context)
    if request.routing is not None:
        return tokens[:length]
    return made_up_tokens(plan.placement.sizes.config, length, text=1)


@dataclass(frozen=True)
class _Told:
    """What is printed, in words or as an object."""

    model: str
    machine: "Machine"
    plan: "MemoryPlan"
    routing: Path | None
    outcomes: "list[Outcome]"
    prompt: "PromptReport"

    def heading(self) -> list[str]:
        placement, predicted = self.plan.placement, self.plan.prediction
        slots = text(
            "simulate.slots",
            slots=f"{placement.slots_per_layer:.1f}",
            experts=placement.sizes.config.num_experts,
        )
        source = text("simulate.made_up") if self.routing is None else str(self.routing)
        return [
            text(
                "simulate.heading",
                model=self.model,
                precision=placement.precision,
                context=placement.context,
                machine=self.machine.name,
            ),
            text("simulate.plan", slots=slots, rate=f"{predicted.tokens_per_s:.1f}"),
            text("simulate.routing", source=source),
        ]

    def rows(self) -> list[tuple[str, ...]]:
        columns = ("policy", "way", "rate", "hits", "cpu", "link", "uploads", "wait_cpu")
        headings = [text(f"simulate.column_{column}") for column in (*columns, "wait_link")]
        return [tuple(headings), *map(self._row, self.outcomes)]

    def _row(self, outcome: "Outcome") -> tuple[str, ...]:
        report, counts = outcome.report, outcome.report.counts
        each = max(1, counts.tokens)
        on_cpu = report.wait_share("cpu") + report.wait_share("disk") + report.wait_share("host")
        return (
            _policy_text(outcome.policy),
            text(f"simulate.way_{outcome.way}"),
            f"{report.tokens_per_s:.1f}",
            f"{100 * report.hit_rate:.1f} %",
            f"{counts.on_cpu / each:.1f}",
            f"{counts.on_link / each:.1f}",
            f"{counts.background / each:.1f}",
            f"{100 * on_cpu:.0f} %",
            f"{100 * report.wait_share('link'):.0f} %",
        )

    def bars(self) -> list[tuple[str, float]]:
        """Names and tokens a second."""
        return [
            (
                _listed((_policy_text(one.policy), text(f"simulate.way_{one.way}"))),
                one.report.tokens_per_s,
            )
            for one in self.outcomes
        ]

    def footing(self) -> list[str]:
        prompt, first = self.prompt, self.outcomes[0].report
        busy = _listed(
            f"{text(f'simulate.part_{part}')} {100 * first.share(part):.0f} %"
            for part in ("gpu", "cpu", "link", "memory", "disk")
            if first.busy[part]
        )
        return [
            text("simulate.busy", busy=busy),
            text(
                "simulate.prompt",
                tokens=prompt.tokens,
                seconds=f"{prompt.seconds:.2f}",
                copied_bytes=prompt.copied,
            ),
        ]

    def as_object(self) -> dict[str, Any]:
        placement = self.plan.placement
        return {
            "model": self.model,
            "machine": asdict(self.machine),
            "precision": placement.precision,
            "context": placement.context,
            "expert_slots": placement.expert_slots,
            "routing": None if self.routing is None else str(self.routing),
            "prediction": asdict(self.plan.prediction),
            "outcomes": [_object(outcome) for outcome in self.outcomes],
            "prompt": asdict(self.prompt),
        }


def _listed(parts: Iterable[str]) -> str:
    return text("list.separator").join(parts)


def _policy_text(policy: str) -> str:
    return text(f"simulate.policy_{policy.replace(' ', '_')}")


def _object(outcome: "Outcome") -> dict[str, Any]:
    report = outcome.report
    return {
        "policy": outcome.policy,
        "way": outcome.way,
        "tokens_per_s": report.tokens_per_s,
        "hit_rate": report.hit_rate,
        "seconds": report.seconds,
        **asdict(report.counts),
        "busy_s": dict(report.busy),
        "waits_s": dict(report.waits),
    }
