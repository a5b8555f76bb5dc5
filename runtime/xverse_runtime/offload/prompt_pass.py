"""A layer's experts for many tokens: the whole layer streams through the device, group by group."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from xverse_kernels.backend import KernelBackend
from xverse_kernels.types import RoutedTokens
from xverse_runtime.offload.coordinator import Coordinator
from xverse_runtime.offload.expert_cache import ExpertCache
from xverse_runtime.offload.layer_stream import LayerStream
from xverse_runtime.offload.patience import Awaited
from xverse_runtime.offload.table_rows import TableRows

LAST_TOKENS = 16  # of a prompt: what they chose is likely to be chosen next

# Tells the policy what tokens of a layer chose, by their experts and the router's probabilities.
Note = Callable[[int, Sequence[Sequence[int]], Tensor], None]


class PromptPass:
    """Adds groups of experts up in a fixed order, in fp32: the sum tells nothing of the cache."""

    def __init__(
        self,
        cache: ExpertCache,
        rules: Coordinator,
        kernels: KernelBackend,
        top_k: int,
        note: Note,
    ) -> None:
        self._cache = cache
        self._rules = rules
        self._kernels = kernels
        self._top_k = top_k
        self._note = note
        self._stream = LayerStream(cache)
        width = cache.host.experts + len(cache.shared_rows(0))
        self._rows = TableRows(cache.device, width)
        self._table = cache.device.empty(width, dtype=torch.int32)
        self._last: tuple[Tensor, Tensor] | None = None  # host buffers of the last tokens' choices

    def forget(self) -> None:
        """Drop what was begun: the pool is about to leave."""
        self._stream.forget()

    @property
    def uploaded_bytes(self) -> int:
        return self._stream.uploaded_bytes

    @property
    def link_s(self) -> float:
        """How long the link was at it, as far as that is known."""
        return self._stream.link_s

    def __call__(
        self,
        layer: int,
        routed: RoutedTokens,
        x: Tensor,
        between: Callable[[], None] | None = None,
    ) -> Tensor:
        """Residual stream [T, H] to residual stream [T, H]."""
        cache, stream = self._cache, self._stream
        if layer == 0:
            stream.forget()  # what a pass that was broken off had begun
        wanted = self._last_used(layer, routed)
        total = x.float()
        for number in range(len(stream.groups)):
            if between is not None:
                between()
            group = stream.take(layer, number)
            rows = dict(group.rows)
            if number == 0:
                rows.update(enumerate(cache.shared_rows(layer), start=cache.host.experts))
            self._rows.send_some(rows, self._table)
            if cache.device.checks:
                cache.device.reading(rows.values())
            total = self._kernels.experts(routed, cache.blocks(self._table), total)
            self._keep(
                layer, number, [one for one in wanted if one in group.passing], group.passing
            )
            stream.release()
        return total.to(x.dtype)

    def _last_used(self, layer: int, routed: RoutedTokens) -> list[int]:
        """The experts of the last tokens, which the policy hears of; the latest come first."""
        device = self._cache.device
        chosen = (routed.expert_ids[-LAST_TOKENS:], routed.logits[-LAST_TOKENS:])
        if self._last is None:
            ids, logits = (
                device.host_buffer(LAST_TOKENS, one.shape[1], dtype=one.dtype) for one in chosen
            )
            self._last = ids, logits
        count = len(chosen[0])
        device.to_host(
            [
                (source.contiguous(), target[:count])
                for source, target in zip(chosen, self._last, strict=True)
            ]
        )
        device.mark().wait(Awaited(layer))
        used: list[list[int]] = self._last[0][:count].tolist()
        self._note(layer, used, self._last[1][:count].float().softmax(-1))
        latest_first = (expert for row in reversed(used) for expert in row[: self._top_k])
        return list(dict.fromkeys(latest_first))

    def _keep(
        self, layer: int, number: int, wanted: Sequence[int], passing: dict[int, int]
    ) -> None:
        """Give experts slots that the next tokens are likely to go to, while they are here; others
        that this pass still needs stay."""
        slots = self._cache.slots
        slots.enter_layer()  # what the last tokens use has no more right to stay than others
        slots.protect(self._stream.still_needed(layer, number))
        for expert in wanted:
            self._cache.keep((layer, expert), passing[expert], self._rules)
