"""Which row of the pool is whose: bookkeeping without bytes.

Rows hold the slots' experts, the shared experts of each layer, and two staging halves. A block that
has crossed to a staging half and is to stay does not move: its place and a slot exchange rows.
"""

from __future__ import annotations

from collections.abc import Sequence


class PoolRows:
    """Slots first, then shared experts, then both halves; later in any order."""

    def __init__(self, slots: int, layers: int, shared: int, staged: int) -> None:
        """
        Args:
            slots: of all layers together.
            layers: of the model.
            shared: shared experts of a layer.
            staged: places of a staging half.
        """
        self.resident = slots + layers * shared
        self.count = self.resident + 2 * staged
        self._staged = staged
        self._of_slot = list(range(slots))
        self._of_shared = [
            list(range(slots + layer * shared, slots + (layer + 1) * shared))
            for layer in range(layers)
        ]
        self._of_place = list(range(self.resident, self.count))

    def of_slot(self, slot: int) -> int:
        return self._of_slot[slot]

    def of_slots(self, table: Sequence[int]) -> list[int]:
        """Rows for slots; -1 stays."""
        return [-1 if slot < 0 else self._of_slot[slot] for slot in table]

    def of_shared(self, layer: int) -> list[int]:
        return self._of_shared[layer]

    def of_place(self, half: int, place: int) -> int:
        """Of a place in a staging half."""
        return self._of_place[half * self._staged + place]

    def exchange(self, slot: int, row: int) -> None:
        """A slot takes a row that was a staging half's, and that gets the slot's."""
        place = self._of_place.index(row)
        self._of_place[place], self._of_slot[slot] = self._of_slot[slot], row
