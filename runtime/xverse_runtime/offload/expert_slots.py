"""Which expert is in which slot: the bookkeeping of the expert cache, without the bytes.

Slots are shared by all layers. Two rules hold whatever the policy: a layer keeps at least ``floor``
experts, unless one of its own takes the place; and experts that the current layer uses stay.
An expert whose bytes are on their way has a slot, is not yet a hit, and cannot be thrown out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from xverse_runtime.offload.policy import ExpertPolicy, Key


class Reservation(NamedTuple):
    """A slot for an expert that is to be copied there, and who was thrown out of it."""

    slot: int
    evicted: Key | None


class ExpertSlots:
    """Slot table of a model: `enter_layer`, `use`, then `reserve` and `commit` what is missing."""

    def __init__(
        self, layers: int, experts: int, slots: int, policy: ExpertPolicy, *, floor: int = 0
    ) -> None:
        """
        Args:
            layers: layers with routed experts, numbered from 0.
            experts: routed experts of a layer.
            slots: of all layers together.
            policy: ranks the experts; belongs to these slots.
            floor: experts that a layer keeps; ``layers * floor`` slots at most.
        """
        assert 0 <= layers * floor <= slots
        self.experts = experts
        self.slots = slots
        self.policy = policy
        self._floor = floor
        self._tables = [[-1] * experts for _ in range(layers)]
        self._slot: dict[Key, int] = {}  # also of those on their way
        self._coming: set[Key] = set()
        self._free = list(range(slots - 1, -1, -1))
        self._held = [0] * layers
        self._in_use: set[Key] = set()

    def table(self, layer: int) -> Sequence[int]:
        """The slot of each expert of a layer, -1 where it is not resident. Do not change it."""
        return self._tables[layer]

    def held(self, layer: int) -> int:
        """How many slots a layer has now."""
        return self._held[layer]

    @property
    def resident(self) -> list[Key]:
        """All experts that can be used now."""
        return [key for key in self._slot if key not in self._coming]

    def enter_layer(self) -> None:
        """A layer begins: what the one before used is no longer protected."""
        self._in_use.clear()

    def protect(self, keys: Iterable[Key]) -> None:
        """These may not leave until the next layer is entered, like those that are used."""
        self._in_use.update(keys)

    def use(
        self, layer: int, experts: Sequence[int], probabilities: Sequence[float] | None = None
    ) -> list[Key]:
        """A token goes to ``experts`` of the layer; tells the policy, and protects them.

        Args:
            layer: its number.
            experts: the chosen ones.
            probabilities: the router's, for each of them.

        Returns:
            Those that are not resident (they may be on their way), in the given order.
        """
        table, missing = self._tables[layer], []
        for place, expert in enumerate(experts):
            key = (layer, expert)
            self._in_use.add(key)
            self.policy.on_use(key, probabilities[place] if probabilities else 1.0)
            if table[expert] < 0:
                missing.append(key)
        return missing

    def slot_of(self, key: Key) -> int:
        """Of an expert that is resident or on its way."""
        return self._slot[key]

    def is_coming(self, key: Key) -> bool:
        """Whether a slot is reserved for an expert that has not arrived."""
        return key in self._coming

    def reserve(self, key: Key) -> Reservation | None:
        """A slot for an expert that has none. Whoever had it is gone at once.

        Returns:
            ``None`` when the policy keeps the expert out, or nobody may leave.
        """
        assert key not in self._slot
        evicted = None
        if self._free:
            slot = self._free.pop()
        else:
            evicted = self.policy.victim(key, lambda one: self._may_leave(one, key[0]))
            if evicted is None:
                return None
            slot = self._forget(evicted)
        self._slot[key] = slot
        self._coming.add(key)
        self._held[key[0]] += 1
        return Reservation(slot, evicted)

    def commit(self, key: Key) -> None:
        """The expert's bytes have arrived: from now on it is a hit, and may be a victim."""
        self._coming.remove(key)
        self._tables[key[0]][key[1]] = self._slot[key]
        self.policy.place(key)

    def cancel(self, key: Key) -> None:
        """The bytes will not come: the slot is free again."""
        self._coming.remove(key)
        self._free.append(self._forget(key))

    def fill(self, keys: Iterable[Key]) -> list[tuple[Key, int]]:
        """Put experts into free slots, as long as there are any; for the start.

        Returns:
            Who got which slot.
        """
        placed = []
        for key in keys:
            if not self._free:
                break
            if key not in self._slot:
                reservation = self.reserve(key)
                assert reservation is not None
                self.commit(key)
                placed.append((key, reservation.slot))
        return placed

    def resize(self, slots: int) -> list[tuple[Key, int]]:
        """Another number of slots, between two passes: those that are worth least go without one,
        the others get new ones. A floor that the slots do not suffice for is lowered.

        Returns:
            Who has which slot now.
        """
        assert not self._coming
        self._in_use.clear()
        self._floor = min(self._floor, slots // len(self._tables))
        while len(self._slot) > slots:
            key = self.policy.lowest(lambda one: self._held[one[0]] > self._floor)
            assert key is not None  # more than the floors of all layers are resident
            self._forget(key)
        self.slots = slots
        self._slot = {key: number for number, key in enumerate(self._slot)}
        self._free = list(range(slots - 1, len(self._slot) - 1, -1))
        for (layer, expert), slot in self._slot.items():
            self._tables[layer][expert] = slot
        return list(self._slot.items())

    def _may_leave(self, key: Key, incoming_layer: int) -> bool:
        layer = key[0]
        above_floor = self._held[layer] > self._floor or layer == incoming_layer
        return above_floor and key not in self._in_use

    def _forget(self, key: Key) -> int:
        layer, expert = key
        self._tables[layer][expert] = -1
        self._held[layer] -= 1
        return self._slot.pop(key)
