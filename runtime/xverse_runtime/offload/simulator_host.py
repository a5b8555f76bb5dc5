"""Where the experts lie that a GPU does not hold: pinned, in the pages of a file, or on the disk."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from random import Random

from xverse_runtime.offload.policy import Key


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

    def is_pinned(self, key: Key) -> bool:
        """Whether the link can read it where it lies."""
        return key in self._pinned

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
