"""How long layers take, by the host's clock: what decisions about copies go by."""

from __future__ import annotations

FOLLOWING = 0.1  # of an estimate, a layer


class Pace:
    """Told when each layer's choice has come, and when the host is through with the layer.

    ``layer_s`` is the time from one layer's choice to the next, ``idle_s`` that from the end of one
    layer's misses to the next one's choice, which the link has for itself.
    """

    def __init__(self) -> None:
        self.layer_s = 0.0
        self.idle_s = 0.0
        self._chosen_at = 0.0
        self._left_at: float | None = None
        self._step_began: float | None = None

    def chosen(self, layer: int, now: float) -> None:
        """The host has heard of a layer's choice."""
        if layer == 0:
            self._step_began, self._left_at = now, None
        else:
            self.layer_s += FOLLOWING * (now - self._chosen_at - self.layer_s)
        if self._left_at is not None:
            self.idle_s += FOLLOWING * (now - self._left_at - self.idle_s)
        self._chosen_at = now

    def left(self, now: float) -> None:
        """The host is through with a layer."""
        self._left_at = now

    def step_s(self, now: float) -> float | None:
        """Since the first layer's choice; ``None`` where something else came between."""
        return None if self._step_began is None else now - self._step_began

    def interrupted(self) -> None:
        """What comes next does not follow what came before."""
        self._left_at = self._step_began = None
