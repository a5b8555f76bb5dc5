"""One plan under several policies and ways to treat misses, on the same trace."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from xverse_runtime.config import ModelConfig
from xverse_runtime.errors import UsageError
from xverse_runtime.offload.machine import Machine
from xverse_runtime.offload.policy import (
    AllResident,
    Belady,
    ExpertPolicy,
    LeastFrequentlyUsed,
    LeastRecentlyUsed,
    ScoreWindow,
    Static,
)
from xverse_runtime.offload.replay import chosen_keys
from xverse_runtime.offload.scheduler import Way
from xverse_runtime.offload.simulator import Options, Simulation
from xverse_runtime.offload.simulator_hardware import Hardware
from xverse_runtime.offload.simulator_host import HostExperts
from xverse_runtime.offload.simulator_prefill import PromptSimulation, PromptWork
from xverse_runtime.offload.simulator_report import PromptReport, Report
from xverse_runtime.offload.simulator_workload import Workload
from xverse_runtime.offload.synthetic_guesses import CAREFUL
from xverse_runtime.offload.synthetic_routing import RoutingModel, SyntheticRouting
from xverse_runtime.offload.trace import RoutedToken, TraceHeader
from xverse_runtime.prediction import Placement

WARM_UP = 256  # tokens before it counts
RUNNERS_UP = 6  # told of each layer in a made-up trace
FLOOR = 2  # experts that every layer keeps

# Of the ways, "ahead" is "both" with prefetch.
CaseWay = Way | Literal["ahead"]

# The runtime's policy and way, without prefetch and with it (how well a model's next layer can be
# guessed is not known beforehand); then its policy with the simpler ways, then other policies.
CASES: tuple[tuple[str, CaseWay], ...] = (
    ("score window", "both"),
    ("score window", "ahead"),
    ("score window", "cpu"),
    ("score window", "link"),
    ("lru", "both"),
    ("lfu", "both"),
    ("static", "both"),
    ("belady", "both"),
)


@dataclass(frozen=True)
class Outcome:
    """What one policy and way came to."""

    policy: str
    way: CaseWay
    report: Report


class Comparison:
    """Simulations of one plan on one trace; each starts with no expert on the GPU."""

    def __init__(
        self, placement: Placement, machine: Machine, tokens: Sequence[RoutedToken], warm_up: int
    ) -> None:
        """
        Args:
            placement: of a mixture of experts, on the GPU.
            machine: with a GPU.
            tokens: what the routers chose.
            warm_up: how many of them do not count.

        Raises:
            UsageError: ``simulate.dense``: the model has no experts.
        """
        if not placement.sizes.config.is_moe:
            raise UsageError("simulate.dense")
        self.placement = placement
        self._machine = machine
        self._tokens = tokens
        self._warm_up = warm_up
        self._work = Workload.of(placement)
        self._last: Simulation | None = None

    @property
    def cases(self) -> tuple[tuple[str, CaseWay], ...]:
        """Policies and ways that differ: one, where all experts are resident."""
        return (("all resident", "both"),) if self.placement.experts_resident else CASES

    def outcomes(self) -> Iterator[Outcome]:
        """One after the other."""
        for policy, way in self.cases:
            yield Outcome(policy, way, self.run(policy, way))

    def run(self, policy: str, way: CaseWay, *, journal: bool = False) -> Report:
        """One of them."""
        floor = min(FLOOR, self.placement.expert_slots // self._work.layers)
        simulation = Simulation(
            self._work,
            self._machine,
            self.placement.expert_slots,
            self._policy(policy),
            Options(
                "both" if way == "ahead" else way,
                floor,
                journal,
                guessed=CAREFUL if way == "ahead" else None,
            ),
            HostExperts.of(self.placement),
        )
        simulation.run(self._tokens[: self._warm_up])
        report = simulation.run(self._tokens[self._warm_up :])
        self._last = self._last or simulation
        return report

    def prompt(self, tokens: Sequence[RoutedToken]) -> PromptReport:
        """A new prompt, with the experts on the GPU that the first run left there."""
        slots = self._last.rules.slots if self._last else None
        resident = frozenset(slots.resident if slots else ())
        simulation = PromptSimulation(
            PromptWork.of(self.placement),
            Hardware(self._machine),
            HostExperts.of(self.placement),
            resident.__contains__,
        )
        return simulation.run(tokens)

    def _policy(self, name: str) -> ExpertPolicy:
        work, tokens = self._work, self._tokens
        counted: Counter[tuple[int, int]] = Counter()
        if name == "static":
            counted.update(chosen_keys(tokens[: self._warm_up], work.top_k))
        kept = [key for key, _ in counted.most_common(self.placement.expert_slots)]
        make: dict[str, Callable[[], ExpertPolicy]] = {
            "score window": lambda: ScoreWindow.for_model(work.layers, work.top_k),
            "lru": LeastRecentlyUsed,
            "lfu": LeastFrequentlyUsed,
            "static": lambda: Static(kept),
            "belady": lambda: Belady(chosen_keys(tokens, work.top_k)),
            "all resident": AllResident,
        }
        return make[name]()


def with_slots(placement: Placement, slots_per_layer: int) -> Placement:
    """The same with another number of slots, whether they fit or not.

    Raises:
        UsageError: ``simulate.slots``: more than the layers have experts.
    """
    config = placement.sizes.config
    if slots_per_layer > config.num_experts:
        raise UsageError("simulate.slots", slots=slots_per_layer, experts=config.num_experts)
    return replace(placement, expert_slots=slots_per_layer * config.num_layers)


def made_up_tokens(config: ModelConfig, tokens: int, text: int = 0) -> list[RoutedToken]:
    """A text as the fitted generator routes it, in the shape of a model; another by its number."""
    shape = RoutingModel(config.num_layers, config.num_experts, config.top_k)
    listed = min(config.num_experts, config.top_k + RUNNERS_UP)
    return list(SyntheticRouting(shape).text(text, tokens, listed=listed))


def check_trace(header: TraceHeader, config: ModelConfig) -> None:
    """Whether a recorded trace can be of this model.

    Raises:
        UsageError: ``simulate.other_trace``.
    """
    recorded = (header.layers, header.experts, header.top_k)
    if recorded != (config.num_layers, config.num_experts, config.top_k):
        raise UsageError(
            "simulate.other_trace",
            model=header.model,
            layers=header.layers,
            experts=header.experts,
            top_k=header.top_k,
        )
