"""A layer's experts where only some are on the device.

A few tokens: the device computes the experts that it has while the host learns what was chosen and
computes the others, or has them uploaded, as the scheduler says; the parts are added slot by slot
in one order, so the sum does not tell who computed what. Many tokens: whole layers stream through.

The work of a layer is cut where the host has to look, so that what lies between can be captured as
graphs: see `ExpertOffload.begin`, `hits`, `misses` and `finish`.
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
from xverse_runtime.offload.expert_cache import ExpertCache, TableRows
from xverse_runtime.offload.layer_stream import LayerStream
from xverse_runtime.offload.modes import ModeChooser
from xverse_runtime.offload.policy import Key
from xverse_runtime.offload.scheduler import MissScheduler, Split
from xverse_runtime.offload.statistics import OffloadStatistics
from xverse_runtime.offload.transfer import Mark, Upload

RUNNERS_UP = 6  # experts that the policy hears of beyond the chosen ones
LAST_TOKENS = 16  # of a prompt: what they chose is likely to be chosen next
IDLE_FADES = 0.9  # of the estimate of the link's idle time, a layer


@dataclass
class FewTokens:
    """Fixed buffers for a number of tokens, on host and device.

    Of the three parts of a sum, those that nobody computes in a layer must be zeros.
    """

    ids: Tensor
    weights: Tensor
    normed: Tensor
    logits: Tensor
    computed: Tensor  # by the CPU
    hits: Tensor
    late: Tensor
    from_host: Tensor
    late_is_zero: bool = True
    from_host_is_zero: bool = True

    @property
    def on_host(self) -> RoutedTokens:
        """What the router chose, as the host has it."""
        return RoutedTokens(self.normed, self.weights, self.ids, self.logits)

    @property
    def parts(self) -> list[Tensor]:
        """fp32 [T, S, H] each, on the device."""
        return [self.hits, self.late, self.from_host]


@dataclass
class Unfinished:
    """What is left to do for a layer when its sum has been asked for."""

    number: int
    ids: list[list[int]]
    probabilities: Callable[[], Tensor]
    split: Split


class ExpertOffload:
    """The experts of all layers. One computation at a time."""

    def __init__(
        self,
        cache: ExpertCache,
        kernels: KernelBackend,
        host_kernels: KernelBackend,
        scheduler: MissScheduler,
        *,
        top_k: int,
        most_few: int,
        modes: ModeChooser | None = None,
        on_step: Callable[[], None] = lambda: None,
    ) -> None:
        """
        Args:
            cache: slots and staging of the device.
            kernels: compute there.
            host_kernels: compute on the host, in fp32.
            scheduler: divides misses; told what they take.
            top_k: routed experts of a token.
            most_few: passes of more tokens stream the layers through.
            modes: which way to go, step by step; by default always the scheduler's.
            on_step: called after every pass of a few tokens.
        """
        self.cache = cache
        self.statistics = OffloadStatistics()
        self.scheduler = scheduler
        self.modes = modes or ModeChooser(("scheduled",))
        self._on_step = on_step
        self._kernels = kernels
        self._host_kernels = host_kernels
        self._top_k = top_k
        self._most_few = most_few
        self._stream = LayerStream(cache)
        self._buffers: dict[int, FewTokens] = {}
        experts = cache.host.experts
        self._shared = cache.shared_rows(0)
        width = experts + len(self._shared)
        self._late_rows = TableRows(cache.device, width)
        self._late_table = cache.device.empty(width, dtype=torch.int32)
        # The table of what the CPU computes, and the same memory for single numbers: writing those
        # to a tensor takes ten times as long.
        self._cpu_table = torch.full((width,), -1, dtype=torch.int32)
        self._cpu_numbers = (ctypes.c_int32 * width).from_address(self._cpu_table.data_ptr())
        self._half = 0
        self._idle_s = 0.0
        self._left_at: float | None = None  # when the host was through with the layer before
        self._step_began: float | None = None
        self._observations: list[tuple[Split, float | None, Upload]] = []
        self._tail: list[Tensor] = []
        cache.on_arrival = self._arrived

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
        if x.shape[0] > self._most_few:
            return self._many(layer, routed, x, between)
        buffers = self.begin(routed)
        chosen = self.cache.device.mark()
        self.hits(layer, routed, buffers)
        rest = self.misses(layer, routed, buffers, chosen)
        x = self.total(x, buffers)
        self.finish(rest)
        return x

    # ------------------------------------------------------------------ a few tokens

    def begin(self, routed: RoutedTokens) -> FewTokens:
        """Send what a layer chose to the host. Only computations: can be captured."""
        buffers = self._buffers_for(routed)
        to_host = self.cache.device.to_host
        to_host(routed.expert_ids, buffers.ids)
        to_host(routed.weights.float(), buffers.weights)
        to_host(routed.normed.float(), buffers.normed)
        to_host(routed.logits, buffers.logits)
        return buffers

    def hits(self, layer: int, routed: RoutedTokens, buffers: FewTokens) -> None:
        """Compute the experts that the device has; `prepare_hits` and `launch_hits` in one."""
        self.prepare_hits(layer)
        self.launch_hits(layer, routed, buffers)

    def prepare_hits(self, layer: int) -> None:
        """Bring the layer's table up to date."""
        self.cache.table(layer)
        if self.cache.device.checks:
            self.cache.device.reading(self.cache.resident_rows(layer))

    def launch_hits(self, layer: int, routed: RoutedTokens, buffers: FewTokens) -> None:
        """Only computations, by a table that is always in the same place: can be captured."""
        experts = self.cache.blocks(self.cache.table(layer))
        self._kernels.expert_parts(routed, experts, buffers.hits)

    def misses(
        self, layer: int, routed: RoutedTokens, buffers: FewTokens, chosen: Mark
    ) -> Unfinished:
        """Divide the misses, and compute them: afterwards all parts are asked for.

        Args:
            layer: its number.
            routed: what the device chose.
            buffers: from `begin`.
            chosen: behind what `begin` asked for.
        """
        cache, statistics = self.cache, self.statistics
        entered = perf_counter()
        chosen.wait()
        waited = perf_counter()
        if layer == 0:
            self._step_began = waited
        if self._left_at is not None:
            self._idle_s = IDLE_FADES * self._idle_s + (1 - IDLE_FADES) * (waited - self._left_at)
        ids: list[list[int]] = buffers.ids.tolist()
        table, top_k = cache.slots.table(layer), self._top_k
        used = [expert for row in ids for expert in row[:top_k]]
        missing = [expert for expert in used if table[expert] < 0]
        split, elsewhere = self._divide(layer, list(dict.fromkeys(missing)))
        begun = perf_counter()
        upload = self._upload(split.now, routed, buffers) if split.now else None
        if upload is None and not buffers.late_is_zero:
            buffers.late.zero_()
            buffers.late_is_zero = True
        on_cpu = [key[1] for key in split.cpu] + elsewhere
        cpu_s = None
        if on_cpu:
            self._compute(layer, on_cpu, buffers)
            took = perf_counter() - begun
            statistics.cpu_s += took
            cpu_s = None if elsewhere else took
        elif not buffers.from_host_is_zero:
            buffers.from_host.zero_()
            buffers.from_host_is_zero = True
        if upload is not None:
            self._observations.append((split, cpu_s, upload))
        elif cpu_s is not None:
            self.scheduler.observe(split, cpu_s=cpu_s)
        over_link = {key[1] for key in split.now}
        crossed = sum(expert in over_link for expert in missing)
        statistics.hits += len(used) - len(missing)
        statistics.over_link += crossed
        statistics.on_cpu += len(missing) - crossed
        statistics.choice_s += waited - entered
        statistics.coordination_s += begun - waited
        statistics.layers += 1
        statistics.tokens += len(ids) if layer == 0 else 0
        logits = buffers.logits
        return Unfinished(layer, ids, lambda: logits.float().softmax(-1), split)

    def total(self, x: Tensor, buffers: FewTokens | None) -> Tensor:
        """The residual stream with a layer's sum. Only computations: can be captured."""
        return x if buffers is None else self._kernels.add_parts(x, buffers.parts)

    def finish(self, rest: Unfinished) -> None:
        """What nothing waits for: the policy hears of the uses, and uploads are begun."""
        started = perf_counter()
        self._note(rest.number, rest.ids, rest.probabilities())
        if self.modes.mode == "scheduled":
            self.cache.wish(rest.split.background)
        self.cache.poll()
        self._observe()
        if rest.number == self.cache.host.layers - 1:
            if self._step_began is not None:
                self.modes.took(perf_counter() - self._step_began)
            self._on_step()
        self._left_at = perf_counter()
        self.statistics.coordination_s += self._left_at - started

    def _divide(self, layer: int, missing: list[int]) -> tuple[Split, list[int]]:
        """What the scheduler says, and the experts that only the CPU can compute now."""
        cache, mode = self.cache, self.modes.mode
        if not missing:
            return Split((), (), ()), []
        if not cache.host.is_pinned(layer):
            return Split((), (), ()), missing
        keys: list[Key] = []
        elsewhere = []
        for expert in missing:
            key = (layer, expert)
            if cache.slots.is_coming(key):
                elsewhere.append(expert)
            else:
                keys.append(key)
        if mode == "scheduled":
            busy_s = cache.busy_s(self.scheduler.cost("link"))
            split = self.scheduler.split(keys, link_busy_s=busy_s, idle_s=self._idle_s)
        else:
            now = len(keys) if mode == "link" else 0
            split = Split(tuple(keys[now:]), tuple(keys[:now]), ())
        if len(split.now) > cache.staged:  # a half holds no more
            kept, over = split.now[: cache.staged], split.now[cache.staged :]
            split = Split(split.cpu + over, kept, split.background)
        return split, elsewhere

    def _upload(self, keys: Sequence[Key], routed: RoutedTokens, buffers: FewTokens) -> Upload:
        """Bring experts to a staging half, and compute them there."""
        cache, half = self.cache, self._half
        self._half = 1 - half
        rows = {key[1]: cache.staging_row(half, place) for place, key in enumerate(keys)}
        copies = [(cache.host.block(key), rows[key[1]]) for key in keys]
        upload = cache.device.upload(cache.pool, copies)
        cache.device.compute_after(upload)
        self._send_table(rows)
        if cache.device.checks:
            cache.device.reading(rows.values())
        self._kernels.expert_parts(routed, cache.blocks(self._late_table), buffers.late)
        buffers.late_is_zero = False
        self.statistics.critical_bytes += upload.nbytes
        return upload

    def _compute(self, layer: int, experts: Sequence[int], buffers: FewTokens) -> None:
        """By the CPU, into the part that comes from the host."""
        cache, numbers = self.cache, self._cpu_numbers
        for expert in experts:
            numbers[expert] = expert
        blocks = cache.host.some(layer, self._cpu_table)
        self._host_kernels.expert_parts(buffers.on_host, blocks, buffers.computed)
        for expert in experts:
            numbers[expert] = -1
        cache.device.to_device(buffers.computed, buffers.from_host)
        buffers.from_host_is_zero = False

    def _send_table(self, rows: dict[int, int]) -> None:
        numbers = [-1] * self._late_table.shape[0]
        for expert, row in rows.items():
            numbers[expert] = row
        self._late_rows.send(numbers, self._late_table)

    def _note(self, layer: int, ids: Sequence[Sequence[int]], probabilities: Tensor) -> None:
        """Tell the policy what tokens of a layer used, and nearly used."""
        slots, top_k = self.cache.slots, self._top_k
        listed = min(top_k + RUNNERS_UP, slots.experts)
        highest = probabilities.topk(listed, dim=-1)
        nearly = zip(highest.indices.tolist(), highest.values.tolist(), strict=True)
        slots.enter_layer()
        for row, (experts, likely) in zip(ids, nearly, strict=True):
            slots.use(layer, row[:top_k], likely[:top_k])
            for expert, probability in zip(experts[top_k:], likely[top_k:], strict=True):
                slots.policy.on_use((layer, expert), probability, chosen=False)

    def _arrived(self, upload: Upload) -> None:
        seconds = upload.seconds()
        if seconds is not None:
            self.scheduler.observe_background(seconds)
        self.statistics.background_bytes += upload.nbytes

    def _observe(self) -> None:
        """Tell the scheduler of uploads that were waited for, once their times are known."""
        while self._observations and self._observations[0][2].is_done():
            split, cpu_s, upload = self._observations.pop(0)
            self.scheduler.observe(split, cpu_s=cpu_s, link_s=upload.seconds())

    def _buffers_for(self, routed: RoutedTokens) -> FewTokens:
        tokens, slots = routed.expert_ids.shape
        if tokens not in self._buffers:
            device, hidden = self.cache.device, routed.normed.shape[1]

            def on_host(like: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
                return device.host_buffer(*like.shape, dtype=dtype)

            def parts() -> Tensor:
                return device.empty(tokens, slots, hidden, dtype=torch.float32).zero_()

            self._buffers[tokens] = FewTokens(
                ids=on_host(routed.expert_ids, routed.expert_ids.dtype),
                weights=on_host(routed.weights),
                normed=on_host(routed.normed),
                logits=on_host(routed.logits),
                computed=device.host_buffer(tokens, slots, hidden, dtype=torch.float32),
                hits=parts(),
                late=parts(),
                from_host=parts(),
            )
        return self._buffers[tokens]

    # ------------------------------------------------------------------ many tokens

    def _many(
        self,
        layer: int,
        routed: RoutedTokens,
        x: Tensor,
        between: Callable[[], None] | None,
    ) -> Tensor:
        cache, stream = self.cache, self._stream
        if layer == 0:
            stream.forget()  # what a pass that was broken off had begun
        self._left_at = self._step_began = None
        wanted = self._last_used(layer, routed)
        total = x.float()
        for number in range(len(stream.groups)):
            if between is not None:
                between()
            group = stream.take(layer, number)
            rows = dict(group.rows)
            if number == 0:
                first = cache.host.experts
                rows.update(enumerate(cache.shared_rows(layer), start=first))
            self._send_table(rows)
            if cache.device.checks:
                cache.device.reading(rows.values())
            total = self._kernels.experts(routed, cache.blocks(self._late_table), total)
            self._admit(layer, number, wanted, group.passing)
            stream.release()
        self.statistics.prompt_bytes = stream.uploaded_bytes
        return total.to(x.dtype)

    def _last_used(self, layer: int, routed: RoutedTokens) -> dict[int, None]:
        """The experts of the last tokens, which the policy hears of; the latest come first."""
        device, top_k = self.cache.device, self._top_k
        ids, logits = routed.expert_ids[-LAST_TOKENS:], routed.logits[-LAST_TOKENS:]
        if not self._tail:
            shapes = ((LAST_TOKENS, one.shape[1], one.dtype) for one in (ids, logits))
            self._tail = [device.host_buffer(a, b, dtype=dtype) for a, b, dtype in shapes]
        count = len(ids)
        for source, target in zip((ids, logits), self._tail, strict=True):
            device.to_host(source.contiguous(), target[:count])
        device.mark().wait()
        used: list[list[int]] = self._tail[0][:count].tolist()
        self._note(layer, used, self._tail[1][:count].float().softmax(-1))
        return dict.fromkeys(expert for row in reversed(used) for expert in row[:top_k])

    def _admit(
        self, layer: int, number: int, wanted: dict[int, None], passing: dict[int, int]
    ) -> None:
        """Give experts slots that the next tokens are likely to go to, while they are here; others
        that this pass still needs stay."""
        cache = self.cache
        cache.slots.enter_layer()  # what the last tokens use has no more right to stay than others
        cache.slots.protect(self._stream.still_needed(layer, number))
        for expert in wanted:
            if expert in passing:
                cache.adopt((layer, expert), passing[expert])
