"""Where the experts lie that a GPU lacks: pinned, in the pages of a file, or on the disk."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from random import Random

from xverse_runtime.offload.policy import Key
from xverse_runtime.prediction import Placement

STAGED_TRAFFIC = 3.0  # a pageable expert is read and written once more, to a pinned buffer


class HostExperts:
    """Which experts are pinned, and which pages of the others the system keeps: those used last."""

    def __init__(self, keys: Sequence[Key], pinned: int, pages: int, seed: int = 0) -> None:
        """
        Args:
            keys: all routed experts.
            pinned: how many are pinned; spread evenly, by chance.
            pages: how many of the others the memory holds.
            seed: of the chance.
        """
        shuffled = list(keys)
        if pinned < len(shuffled):
            Random(f"pinned {seed}").shuffle(shuffled)
        self._pinned = frozenset(shuffled[:pinned])
        self._pages = pages
        self._held: OrderedDict[Key, None] = OrderedDict.fromkeys(shuffled[pinned:][:pages])

    @classmethod
    def of(cls, placement: Placement) -> HostExperts:
        """Of a plan."""
        sizes, config = placement.sizes, placement.sizes.config
        keys = [
            (layer, one) for layer in range(config.num_layers) for one in range(config.num_experts)
        ]
        others = sizes.separate_embedding() if placement.embedding_device == "cpu" else 0
        pages = max(0, placement.mapped - others) // sizes.block
        return cls(keys, placement.pinned_experts // sizes.block, pages)

    def is_pinned(self, key: Key) -> bool:
        """Whether the link can read it where it lies."""
        return key in self._pinned

    def traffic(self, key: Key) -> float:
        """Bytes of the memory's traffic for each that is copied to the GPU."""
        return 1.0 if key in self._pinned else STAGED_TRAFFIC

    def touch(self, key: Key) -> bool:
        """The expert is read; true when it has to come from the disk first."""
        if key in self._pinned:
            return False
        if key in self._held:
            self._held.move_to_end(key)
            return False
        if self._pages:
            if len(self._held) >= self._pages:
                self._held.popitem(last=False)
            self._held[key] = None
        return True
