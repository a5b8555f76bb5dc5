"""Experts on their way to the device a layer ahead: when they are sent, and what became of them."""

from __future__ import annotations

from collections.abc import Sequence

from xverse_runtime.offload.coordinator import Coordinator, Decision
from xverse_runtime.offload.expert_cache import ExpertCache
from xverse_runtime.offload.modes import ModeChooser
from xverse_runtime.offload.policy import Key
from xverse_runtime.offload.statistics import OffloadStatistics


class SendingAhead:
    """What `Coordinator` expects, brought to `ExpertCache` and counted."""

    def __init__(
        self,
        cache: ExpertCache,
        rules: Coordinator,
        modes: ModeChooser,
        statistics: OffloadStatistics,
    ) -> None:
        self._cache = cache
        self._rules = rules
        self._modes = modes
        self._statistics = statistics

    def expect(
        self, layer: int, guesses: Sequence[int], layer_s: float, busy_s: float = 0.0
    ) -> None:
        """A layer is likely to choose one of these.

        Args:
            layer: the next one.
            guesses: the most probable first.
            layer_s: from one layer's choice to the next.
            busy_s: how long the link is still busy with critical copies.
        """
        self._rules.expect(layer, guesses, send=self._modes.mode == "scheduled")
        self.send(layer_s, busy_s)

    def send(self, layer_s: float, busy_s: float = 0.0) -> None:
        """Begin with what is expected, if the link is idle."""
        if self._cache.send_ahead(self._rules, layer_s, busy_s) is not None:
            self._statistics.prefetched += 1

    def used(self, layer: int, chosen: Sequence[int], decision: Decision) -> dict[Key, int]:
        """The expert that was sent ahead of a layer, and its row, if the device computes it."""
        prefetch = self._rules.prefetch
        key = prefetch.guessed(layer)
        if key is None or key[1] not in chosen or key in decision.split.cpu:
            return {}
        if not (prefetch.is_there(key) or prefetch.coming == key):
            return {}
        self._statistics.prefetched_used += 1
        return {key: self._cache.prefetch_row(layer)}
