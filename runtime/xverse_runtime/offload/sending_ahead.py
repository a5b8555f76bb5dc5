"""Experts on their way to the device a layer ahead: when they are sent, and what became of them."""

from __future__ import annotations

from collections.abc import Sequence

from xverse_runtime.offload.coordinator import Coordinator, Decision
from xverse_runtime.offload.modes import ModeChooser
from xverse_runtime.offload.policy import Key
from xverse_runtime.offload.statistics import OffloadStatistics
from xverse_runtime.offload.transfer import Mark
from xverse_runtime.offload.uploads import Uploads


class SendingAhead:
    """What `Coordinator` expects, handed to `Uploads` and counted."""

    def __init__(
        self,
        uploads: Uploads,
        rules: Coordinator,
        modes: ModeChooser,
        statistics: OffloadStatistics,
    ) -> None:
        self._uploads = uploads
        self._rules = rules
        self._modes = modes
        self._statistics = statistics

    def expect(
        self,
        layer: int,
        guesses: Sequence[int],
        layer_s: float,
        after: Mark,
        busy_s: float = 0.0,
    ) -> None:
        """A layer is likely to choose one of these.

        Args:
            layer: the next one.
            guesses: the most probable first.
            layer_s: from one layer's choice to the next.
            after: see `Uploads.send_ahead`.
            busy_s: how long the link is still busy with critical copies.
        """
        self._rules.expect(layer, guesses, send=self._modes.mode == "scheduled")
        self.send(layer_s, after, busy_s)

    def send(self, layer_s: float, after: Mark, busy_s: float = 0.0) -> None:
        """Begin with what is expected, if the link is idle."""
        if self._uploads.send_ahead(layer_s, after, busy_s) is not None:
            self._statistics.prefetched += 1

    def used(self, layer: int, chosen: Sequence[int], decision: Decision) -> Key | None:
        """The expert that was sent ahead of a layer, if the device computes it."""
        prefetch = self._rules.prefetch
        key = prefetch.guessed(layer)
        if key is None or key[1] not in chosen or key in decision.split.cpu:
            return None
        if not (prefetch.is_there(key) or prefetch.coming == key):
            return None
        self._statistics.prefetched_used += 1
        return key
