"""A layer's experts where only some are on the device.

A few tokens: the device computes the experts that it has while the host learns what was chosen and
computes the others, or has them uploaded, as the scheduler says; the parts are added slot by slot
in one order, so the sum does not tell who computed what. Many tokens: see `PromptPass`.

The work of a layer is cut where the host has to look, so that what lies between can be captured as
graphs: `begin`, then `prepare_hits` and `launch_hits`, `misses`, `total` and `finish`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from time import perf_counter

from torch import Tensor

from xverse_kernels.backend import KernelBackend
from xverse_kernels.types import Parts, RoutedTokens
from xverse_runtime.moe import ExpertRunner
from xverse_runtime.offload.coordinator import Coordinator, Decision
from xverse_runtime.offload.disk_watch import DiskWatch
from xverse_runtime.offload.expert_cache import ExpertCache
from xverse_runtime.offload.host_part import HostPart
from xverse_runtime.offload.late_part import LatePart
from xverse_runtime.offload.modes import Mode, ModeChooser
from xverse_runtime.offload.pace import FOLLOWING, Pace
from xverse_runtime.offload.patience import Awaited, CpuWatch
from xverse_runtime.offload.policy import Key
from xverse_runtime.offload.prompt_pass import PromptPass
from xverse_runtime.offload.scheduler import Split, extra_seconds
from xverse_runtime.offload.sending_ahead import SendingAhead
from xverse_runtime.offload.statistics import OffloadStatistics
from xverse_runtime.offload.token_buffers import TokenBuffers
from xverse_runtime.offload.transfer import Mark, Upload
from xverse_runtime.offload.uploads import Uploads

RUNNERS_UP = 6  # experts that the policy hears of beyond the chosen ones
MOST_DECODED = 8  # tokens: what has more is a prompt, which other figures are about


@dataclass
class Unfinished:
    """What is left to do for a layer when its sum has been asked for."""

    layer: int
    ids: list[list[int]]
    used: list[int]  # routed experts, as often as tokens went to them
    logits: Tensor  # of the router, fp32 [T, E], on the host
    missing: list[Key]
    decision: Decision
    rows: dict[int, int]  # of experts that came late
    cpu_s: float | None  # of the CPU's part
    upload: Upload | None  # that the layer waits for
    chosen: Mark  # behind the layer's choice
    asked: Mark | None  # behind all computations by experts, where an upload may begin there


class ExpertOffload:
    """The experts of all layers. One computation at a time."""

    def __init__(
        self,
        cache: ExpertCache,
        rules: Coordinator,
        kernels: KernelBackend,
        host_kernels: KernelBackend,
        *,
        top_k: int,
        most_few: int,
        modes: ModeChooser | None = None,
        disk: DiskWatch | None = None,
        watch: CpuWatch | None = None,
    ) -> None:
        """
        Args:
            cache: slots and staging of the device.
            rules: decide about misses and slots.
            kernels: compute on the device.
            host_kernels: compute on the host, in fp32.
            top_k: routed experts of a token.
            most_few: passes of more tokens stream the layers through.
            modes: which way to go, step by step; by default always the scheduler's.
            disk: hears of the beginning and the end of every pass.
            watch: hears of the CPU's part.
        """
        self.cache = cache
        self.rules = rules
        self.modes = modes or ModeChooser(("scheduled",))
        self.most_few = most_few
        self.planned_slots = cache.slots.slots
        self.uploads = Uploads(cache, rules)
        self._statistics = OffloadStatistics()
        self._ahead = SendingAhead(self.uploads, rules, self.modes, self._statistics)
        self._kernels = kernels
        width = cache.host.experts + len(cache.shared_rows(0))
        self._late = LatePart(cache, self.uploads, kernels, width)
        self._on_host = HostPart(cache.host, host_kernels, cache.device, width, watch)
        self._top_k = top_k
        self._disk = disk or DiskWatch()
        self._prompt = PromptPass(cache, rules, kernels, top_k, self._note)
        self._single: list[TokenBuffers] = []
        self._several: TokenBuffers | None = None
        self._crossing = Awaited()  # what the last layer waits for
        self._pace = Pace()
        self._missed = 0.0  # experts of a layer, on average
        self.modes.extra = self._extra_s
        self._observations: list[tuple[Split, float | None, Upload | None]] = []

    @property
    def are_here(self) -> bool:
        """Whether the device holds any: not between `leave` and `come_back`."""
        return self.cache.is_here

    @property
    def slots(self) -> int:
        """How many routed experts the device can hold."""
        return self.cache.slots.slots

    def leave(self, slots: int) -> None:
        """Give the device's memory back, whatever became of the pass before; `come_back` takes some
        for so many slots. The text does not tell: what has no slot is a miss.

        Who captured computations must do so anew.
        """
        self._prompt.forget()
        self._observations.clear()
        self._pace.interrupted()
        self.uploads.settle()
        self.cache.leave(slots)
        self.rules.most_now = self.cache.staged

    def come_back(self) -> None:
        """Raises torch.OutOfMemoryError: it does not fit; nothing was taken."""
        self.cache.come_back()

    @property
    def statistics(self) -> OffloadStatistics:
        """So far."""
        self._statistics.prompt_bytes = self._prompt.uploaded_bytes
        self._statistics.prompt_link_s = self._prompt.link_s
        return self._statistics

    @property
    def runners(self) -> list[ExpertRunner]:
        """For each layer what the decoder calls."""
        return [partial(self, layer) for layer in range(self.cache.host.layers)]

    def __call__(
        self,
        layer: int,
        routed: RoutedTokens,
        x: Tensor,
        between: Callable[[], None] | None = None,
    ) -> Tensor:
        """Residual stream [T, H] to residual stream [T, H]."""
        if between is not None:
            between()
        if x.shape[0] > self.most_few:
            self._pace.interrupted()
            if layer == 0:
                self._disk.begin()
            x = self._prompt(layer, routed, x, between)
            if layer == self.cache.host.layers - 1:
                self._statistics.disk_s += self._disk.end()
            return x
        buffers = self.begin(layer, routed)
        chosen = self.cache.device.mark()
        self.prepare_hits(layer)
        self.launch_hits(layer, routed, buffers)
        rest = self.misses(layer, routed, buffers, chosen)
        x = self.total(x, layer, routed, buffers)
        self.finish(rest)
        if layer == self.cache.host.layers - 1:
            self.settle()
        return x

    @property
    def wants_guesses(self) -> bool:
        """Whether guesses at the next layer's choice are of any use."""
        return self.cache.can_prefetch

    def begin(
        self, layer: int, routed: RoutedTokens, guesses: Tensor | None = None
    ) -> TokenBuffers:
        """Send what a layer chose to the host. Only computations: can be captured.

        Args:
            layer: its number.
            routed: what the device chose.
            guesses: ids [T, S] that the next layer's router gives for what there is by now.
        """
        buffers = self._buffers_for(layer, routed)
        copies = list(zip(routed, buffers.on_host, strict=True))
        if guesses is not None:
            copies.append((guesses, buffers.guesses))
        self.cache.device.to_host(copies)
        return buffers

    def _buffers_for(self, layer: int, routed: RoutedTokens) -> TokenBuffers:
        """Fixed sets for single tokens, whose addresses are in graphs, and one for all other
        passes. Layers take turns, as one is finished while the next one's choice is on its way."""
        tokens = routed.normed.shape[0]
        if tokens == 1:
            if not self._single:
                first = TokenBuffers.like(routed, 1, self.cache.device)
                self._single = [first, first.beside(routed, self.cache.device)]
            return self._single[layer % 2]
        if self._several is None:
            self._several = TokenBuffers.like(routed, self.most_few, self.cache.device)
        return self._several.first(tokens)

    def prepare_hits(self, layer: int) -> None:
        """Bring the layer's table up to date."""
        if layer == 0:
            self._disk.begin()
            self.rules.prefetch.forget()  # what a pass that was broken off had expected
        self.uploads.poll_ahead()
        self.cache.update_table(layer, self.rules.prefetch.there(layer))
        if self.cache.device.checks:
            self.cache.device.reading(self.cache.resident_rows(layer))

    def launch_hits(self, layer: int, routed: RoutedTokens, buffers: TokenBuffers) -> None:
        """Compute the experts that the device has, by a table that is always in the same place.
        Only computations: can be captured."""
        experts = self.cache.blocks(self.cache.table(layer))
        self._kernels.expert_parts(routed, experts, buffers.hits)

    def misses(
        self,
        layer: int,
        routed: RoutedTokens,
        buffers: TokenBuffers,
        chosen: Mark,
        *,
        guessed: bool = False,
    ) -> Unfinished:
        """Divide the misses, and compute them: afterwards all parts are asked for.

        Args:
            layer: its number.
            routed: what the device chose.
            buffers: from `begin`.
            chosen: behind what `begin` asked for.
            guessed: whether that had guesses.
        """
        entered = perf_counter()
        # What a layer waits for are the copies of the one before.
        chosen.wait(self._crossing if layer and self._crossing.experts else Awaited(layer))
        waited = perf_counter()
        self._pace.chosen(layer, waited)
        ids: list[list[int]] = buffers.on_host.expert_ids.tolist()
        used = [expert for row in ids for expert in row[: self._top_k]]
        missing = self.rules.missing(layer, used)  # as the table has it that hits are computed by
        self.uploads.poll_ahead()
        decision = self._decide(missing)
        begun = perf_counter()
        upload, rows = self._late(decision, routed, buffers, chosen)
        self._crossing = Awaited(layer, tuple(rows))
        if guessed:
            guesses: list[int] = buffers.guesses[0, : self._top_k].tolist()
            link = self.rules.scheduler.cost("link")
            busy_s = 0.0 if upload is None else link.seconds(upload.nbytes)
            self._ahead.expect(layer + 1, guesses, self._pace.layer_s, chosen, busy_s)
        asked = self.cache.device.mark() if self.uploads.has_next else None
        cpu_s = None
        if decision.split.cpu:
            on_cpu = [expert for _, expert in decision.split.cpu]
            cpu_s = self._on_host.compute(layer, on_cpu, buffers)
        self._statistics.choice_s += waited - entered
        self._statistics.coordination_s += begun - waited
        # The device waits from here on: everything else is for `finish`.
        logits = buffers.on_host.logits
        return Unfinished(
            layer, ids, used, logits, missing, decision, rows, cpu_s, upload, chosen, asked
        )

    def total(self, x: Tensor, layer: int, routed: RoutedTokens, buffers: TokenBuffers) -> Tensor:
        """The residual stream with a layer's sum. Only computations: can be captured."""
        if self.cache.device.checks and buffers.in_place:
            self.cache.device.reading_in_place(buffers.computed)
        here = [Parts(buffers.hits, self.cache.table(layer)), self._late.parts(buffers)]
        return self._kernels.add_parts(x, routed.expert_ids, here, buffers.from_host)

    def finish(self, rest: Unfinished) -> None:
        """What nothing waits for: the policy hears of the uses, and uploads are begun."""
        started = perf_counter()
        layer, split = rest.layer, rest.decision.split
        self._note(layer, rest.ids, rest.logits.softmax(-1))
        for key in split.now:
            self.cache.keep(key, rest.rows[key[1]], self.rules)
        ahead = self._ahead.used(layer, rest.used, rest.decision)
        if ahead is not None:
            self.cache.keep(ahead, self.cache.prefetch_row(layer), self.rules)
        if self.rules.prefetch.guessed(layer) is not None:
            self.rules.leave(layer, set(rest.used))
        self.uploads.poll_ahead()
        self._ahead.send(self._pace.layer_s, rest.chosen)
        come = self.uploads.poll(rest.asked)
        if come is not None:
            self._statistics.background_bytes += come.nbytes
            if (seconds := come.seconds()) is not None:
                self.rules.scheduler.observe_background(seconds)
        self._observe(rest)
        now = perf_counter()
        if layer == self.cache.host.layers - 1:
            step_s = self._pace.step_s(now)
            if step_s is not None and len(rest.ids) <= MOST_DECODED:
                self.modes.took(step_s)
            self._statistics.disk_s += self._disk.end()
            now = perf_counter()
        self._pace.left(now)
        self._statistics.coordination_s += now - started

    def _observe(self, rest: Unfinished) -> None:
        """Count what was done, and let the scheduler hear of what is over by now."""
        decision, upload = rest.decision, rest.upload
        if len(rest.ids) <= MOST_DECODED:
            self._missed += FOLLOWING * (len(rest.missing) - self._missed)
            self._statistics.count(rest.layer, len(rest.ids), rest.used, rest.missing, decision)
        self._statistics.cpu_s += rest.cpu_s or 0.0
        if upload is not None:
            self._statistics.critical_bytes += upload.nbytes
        if upload is not None or rest.cpu_s is not None:
            self._observations.append((decision.split, rest.cpu_s, upload))
        while self._observations:
            split, cpu_s, upload = self._observations[0]
            if upload is not None and not upload.is_done():
                return
            del self._observations[0]
            link_s = None if upload is None else upload.seconds()
            self._statistics.link_s += link_s or 0.0
            self.rules.scheduler.observe(split, cpu_s=cpu_s, link_s=link_s)

    def _extra_s(self, mode: Mode) -> float:
        """How many seconds longer than as scheduled a step is going to take, by the costs."""
        if mode not in ("cpu", "link"):
            return 0.0
        layers, misses = self.cache.host.layers, round(self._missed)
        return layers * extra_seconds(self.rules.scheduler, mode, misses)

    def settle(self) -> None:
        """The last layer's copies have come, if there were any; or an error names them."""
        if self._crossing.experts:
            self.cache.device.mark().wait(self._crossing)

    def _decide(self, missing: Sequence[Key]) -> Decision:
        mode = self.modes.mode
        busy_s = self.uploads.busy_s(self.rules.scheduler.cost("link")) if missing else 0.0
        return self.rules.decide(
            missing,
            link_busy_s=busy_s,
            idle_s=self._pace.idle_s,
            coming_s=float("inf") if self.uploads.is_filling else busy_s,
            only=mode if mode in ("cpu", "link") else None,
        )

    def _note(self, layer: int, ids: Sequence[Sequence[int]], probabilities: Tensor) -> None:
        """Tell the policy what tokens of a layer used, and nearly used."""
        slots, top_k = self.cache.slots, self._top_k
        highest = probabilities.topk(min(top_k + RUNNERS_UP, slots.experts), dim=-1)
        experts, likely = highest.indices.tolist(), highest.values.tolist()
        slots.enter_layer()
        for row, others, values in zip(ids, experts, likely, strict=True):
            self.rules.note(layer, [*row[:top_k], *others[top_k:]], values, top_k)
