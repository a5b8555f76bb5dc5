"""A layer's experts where only some are on the device.

A few tokens: the device computes the experts that it has while the host learns what was chosen and
computes the others, or has them uploaded, as the scheduler says; the parts are added slot by slot
in one order, so the sum does not tell who computed what. Many tokens: see `PromptPass`.

The work of a layer is cut where the host has to look, so that what lies between can be captured as
graphs: `begin`, then `prepare_hits` and `launch_hits`, `misses`, `total` and `finish`.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from time import perf_counter

import torch
from torch import Tensor

from xverse_kernels.backend import KernelBackend
from xverse_kernels.types import RoutedTokens
from xverse_runtime.moe import ExpertRunner
from xverse_runtime.offload.coordinator import Coordinator, Decision
from xverse_runtime.offload.expert_cache import ExpertCache
from xverse_runtime.offload.modes import ModeChooser
from xverse_runtime.offload.patience import Awaited, CpuWatch
from xverse_runtime.offload.policy import Key
from xverse_runtime.offload.prompt_pass import PromptPass
from xverse_runtime.offload.scheduler import Split
from xverse_runtime.offload.sending_ahead import SendingAhead
from xverse_runtime.offload.statistics import OffloadStatistics
from xverse_runtime.offload.table_rows import TableRows
from xverse_runtime.offload.token_buffers import TokenBuffers
from xverse_runtime.offload.transfer import Mark, Upload

RUNNERS_UP = 6  # experts that the policy hears of beyond the chosen ones
MOST_DECODED = 8  # tokens: what has more is a prompt, which other figures are about
FOLLOWING = 0.1  # of the estimates of a layer's time and the link's idle time, a layer


@dataclass
class Unfinished:
    """What is left to do for a layer when its sum has been asked for."""

    layer: int
    ids: list[list[int]]
    logits: Tensor  # of the router, fp32 [T, E], on the host
    staged: dict[Key, int]  # experts that crossed or were sent ahead and used, and their rows


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
        on_step: Callable[[], None] = lambda: None,
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
            on_step: called after every pass of a few tokens.
            watch: hears of the CPU's part.
        """
        self.cache = cache
        self.rules = rules
        self.modes = modes or ModeChooser(("scheduled",))
        self.most_few = most_few
        self.planned_slots = cache.slots.slots
        self._statistics = OffloadStatistics()
        self._ahead = SendingAhead(cache, rules, self.modes, self._statistics)
        self._kernels = kernels
        self._host_kernels = host_kernels
        self._top_k = top_k
        self._on_step = on_step
        self._watch = watch
        self._prompt = PromptPass(cache, rules, kernels, top_k, self._note)
        self._single: TokenBuffers | None = None
        self._several: TokenBuffers | None = None
        width = cache.host.experts + len(cache.shared_rows(0))
        self._late_rows = TableRows(cache.device, width)
        self._late_table = cache.device.empty(width, dtype=torch.int32)
        # The table of what the CPU computes, and the same memory for single numbers: writing those
        # to a tensor takes ten times as long.
        self._cpu_table = torch.full((width,), -1, dtype=torch.int32)
        self._cpu_numbers = (ctypes.c_int32 * width).from_address(self._cpu_table.data_ptr())
        self._crossing = Awaited()  # what the last layer waits for
        self._idle_s = 0.0
        self._chosen_at = 0.0  # when the host heard of the last layer's choice
        self._layer_s = 0.0  # from one choice to the next
        self._left_at: float | None = None  # when the host was through with the layer before
        self._step_began: float | None = None
        self._prefetched: int | None = None  # expert of the layer that hits are computed of
        self._observations: list[tuple[Split, float | None, Upload]] = []

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
        self._left_at = self._step_began = None
        self.cache.leave(slots, self.rules)

    def come_back(self) -> None:
        """Raises torch.OutOfMemoryError: it does not fit; nothing was taken."""
        self.cache.come_back()

    @property
    def statistics(self) -> OffloadStatistics:
        """So far."""
        self._statistics.prompt_bytes = self._prompt.uploaded_bytes
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
            self._left_at = self._step_began = None
            return self._prompt(layer, routed, x, between)
        buffers = self.begin(routed)
        chosen = self.cache.device.mark()
        self.prepare_hits(layer)
        self.launch_hits(layer, routed, buffers)
        rest = self.misses(layer, routed, buffers, chosen)
        x = self.total(x, buffers)
        self.finish(rest)
        if layer == self.cache.host.layers - 1:
            self.settle()
        return x

    @property
    def wants_guesses(self) -> bool:
        """Whether guesses at the next layer's choice are of any use."""
        return self.cache.can_prefetch

    def begin(self, routed: RoutedTokens, guesses: Tensor | None = None) -> TokenBuffers:
        """Send what a layer chose to the host. Only computations: can be captured.

        Args:
            routed: what the device chose.
            guesses: ids [T, S] that the next layer's router gives for what there is by now.
        """
        buffers, to_host = self._buffers_for(routed), self.cache.device.to_host
        to_host(routed.expert_ids, buffers.on_host.expert_ids)
        to_host(routed.weights.float(), buffers.on_host.weights)
        to_host(routed.normed.float(), buffers.on_host.normed)
        to_host(routed.logits, buffers.on_host.logits)
        if guesses is not None:
            to_host(guesses, buffers.guesses)
        return buffers

    def _buffers_for(self, routed: RoutedTokens) -> TokenBuffers:
        """One set for single tokens, whose addresses are in graphs; one for all other passes."""
        tokens = routed.normed.shape[0]
        if tokens == 1:
            if self._single is None:
                self._single = TokenBuffers.like(routed, 1, self.cache.device)
            return self._single
        if self._several is None:
            self._several = TokenBuffers.like(routed, self.most_few, self.cache.device)
        return self._several.first(tokens)

    def prepare_hits(self, layer: int) -> None:
        """Bring the layer's table up to date."""
        if layer == 0:
            self.rules.prefetch.forget()  # what a pass that was broken off had expected
        self.cache.poll_ahead(self.rules)
        self._prefetched = self.rules.prefetch.there(layer)
        self.cache.table(layer, self._prefetched)
        if self.cache.device.checks:
            self.cache.device.reading(self.cache.resident_rows(layer))

    def launch_hits(self, layer: int, routed: RoutedTokens, buffers: TokenBuffers) -> None:
        """Compute the experts that the device has, by a table that is always in the same place.
        Only computations: can be captured."""
        experts = self.cache.blocks(self.cache.table(layer, self._prefetched))
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
        if layer == 0:
            self._step_began, self._left_at = waited, None
        else:
            self._layer_s += FOLLOWING * (waited - self._chosen_at - self._layer_s)
        self._chosen_at = waited
        if self._left_at is not None:
            self._idle_s += FOLLOWING * (waited - self._left_at - self._idle_s)
        ids: list[list[int]] = buffers.on_host.expert_ids.tolist()
        used = [expert for row in ids for expert in row[: self._top_k]]
        missing = self.rules.missing(layer, used)  # as the table has it that hits are computed by
        self.cache.poll_ahead(self.rules)
        decision = self._decide(missing)
        begun = perf_counter()
        upload, rows = self._late(decision, routed, buffers)
        self._crossing = Awaited(layer, tuple(rows))
        if guessed:
            guesses: list[int] = buffers.guesses[0, : self._top_k].tolist()
            link = self.rules.scheduler.cost("link")
            busy_s = 0.0 if upload is None else link.seconds(upload.nbytes)
            self._ahead.expect(layer + 1, guesses, self._layer_s, busy_s)
        cpu_s = self._compute(layer, decision.split, buffers)
        if upload is not None:
            self._observations.append((decision.split, cpu_s, upload))
        elif cpu_s is not None:
            self.rules.scheduler.observe(decision.split, cpu_s=cpu_s)
        if len(ids) <= MOST_DECODED:
            self._statistics.count(layer, len(ids), used, missing, decision)
        self._statistics.choice_s += waited - entered
        self._statistics.cpu_s += cpu_s or 0.0
        self._statistics.coordination_s += begun - waited
        staged = {key: rows[key[1]] for key in decision.split.now}
        staged.update(self._ahead.used(layer, used, decision))
        # A copy: the next layer's may be on their way before this one is finished with.
        return Unfinished(layer, ids, buffers.on_host.logits.clone(), staged)

    def total(self, x: Tensor, buffers: TokenBuffers | None) -> Tensor:
        """The residual stream with a layer's sum. Only computations: can be captured."""
        return x if buffers is None else self._kernels.add_parts(x, buffers.parts)

    def finish(self, rest: Unfinished) -> None:
        """What nothing waits for: the policy hears of the uses, and uploads are begun."""
        started = perf_counter()
        self._note(rest.layer, rest.ids, rest.logits.softmax(-1))
        for key, row in rest.staged.items():
            self.cache.keep(key, row, self.rules)
        if self.rules.prefetch.guessed(rest.layer) is not None:
            used = {expert for row in rest.ids for expert in row[: self._top_k]}
            self.rules.leave(rest.layer, used)
        self.cache.poll_ahead(self.rules)
        self._ahead.send(self._layer_s)
        come = self.cache.poll(self.rules)
        if come is not None:
            self._statistics.background_bytes += come.nbytes
            if (seconds := come.seconds()) is not None:
                self.rules.scheduler.observe_background(seconds)
        while self._observations and self._observations[0][2].is_done():
            split, cpu_s, upload = self._observations.pop(0)
            self.rules.scheduler.observe(split, cpu_s=cpu_s, link_s=upload.seconds())
        if rest.layer == self.cache.host.layers - 1:
            if self._step_began is not None and len(rest.ids) <= MOST_DECODED:
                self.modes.took(perf_counter() - self._step_began)
            self._on_step()
        self._left_at = perf_counter()
        self._statistics.coordination_s += self._left_at - started

    def settle(self) -> None:
        """The last layer's copies have come, if there were any; or an error names them."""
        if self._crossing.experts:
            self.cache.device.mark().wait(self._crossing)

    def _decide(self, missing: Sequence[Key]) -> Decision:
        mode = self.modes.mode
        busy_s = self.cache.busy_s(self.rules.scheduler.cost("link")) if missing else 0.0
        return self.rules.decide(
            missing,
            link_busy_s=busy_s,
            idle_s=self._idle_s,
            coming_s=float("inf") if self.cache.is_filling else busy_s,
            only=mode if mode in ("cpu", "link") else None,
        )

    def _late(
        self, decision: Decision, routed: RoutedTokens, buffers: TokenBuffers
    ) -> tuple[Upload | None, dict[int, int]]:
        """Bring experts to a staging half, and compute them and those that are awaited."""
        cache, now = self.cache, decision.split.now
        if not (now or decision.awaited):
            buffers.cross(something=False)
            return None, {}
        buffers.cross(something=True)
        rows: dict[int, int] = {}
        for key in decision.awaited:
            rows[key[1]] = cache.awaited_row(key, self.rules)
        upload = None
        if now:
            staged = [(key, cache.staging_row(0, place)) for place, key in enumerate(now)]
            copies = [(cache.host.block(key), row) for key, row in staged]
            upload = cache.device.upload(cache.pool, copies)
            cache.device.compute_after(upload)
            rows.update((key[1], row) for key, row in staged)
            self._statistics.critical_bytes += upload.nbytes
        self._late_rows.send_some(rows, self._late_table)
        if cache.device.checks:
            cache.device.reading(rows.values())
        self._kernels.expert_parts(routed, cache.blocks(self._late_table), buffers.late)
        return upload, rows

    def _compute(self, layer: int, split: Split, buffers: TokenBuffers) -> float | None:
        """By the CPU, into the part that comes from the host; seconds, if there was anything."""
        buffers.come_from_host(something=bool(split.cpu))
        if not split.cpu:
            return None
        begun, numbers = perf_counter(), self._cpu_numbers
        for _, expert in split.cpu:
            numbers[expert] = expert
        blocks = self.cache.host.some(layer, self._cpu_table)
        if self._watch is not None:
            self._watch.begin(layer, [expert for _, expert in split.cpu])
        try:
            self._host_kernels.expert_parts(buffers.on_host, blocks, buffers.computed)
        finally:
            if self._watch is not None:
                self._watch.end()
            for _, expert in split.cpu:
                numbers[expert] = -1
        self.cache.device.to_device(buffers.computed, buffers.from_host)
        return perf_counter() - begun

    def _note(self, layer: int, ids: Sequence[Sequence[int]], probabilities: Tensor) -> None:
        """Tell the policy what tokens of a layer used, and nearly used."""
        slots, top_k = self.cache.slots, self._top_k
        highest = probabilities.topk(min(top_k + RUNNERS_UP, slots.experts), dim=-1)
        experts, likely = highest.indices.tolist(), highest.values.tolist()
        slots.enter_layer()
        for row, others, values in zip(ids, experts, likely, strict=True):
            self.rules.note(layer, [*row[:top_k], *others[top_k:]], values, top_k)
