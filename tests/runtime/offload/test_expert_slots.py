"""The rules that hold whatever the policy."""

from __future__ import annotations

from random import Random

import pytest

from xverse_runtime.offload.expert_slots import ExpertSlots
from xverse_runtime.offload.policy import (
    AllResident,
    ExpertPolicy,
    Key,
    LeastRecentlyUsed,
    ScoreWindow,
)


def bring(slots: ExpertSlots, key: Key) -> Key | None:
    """Use and upload an expert; who left for it."""
    slots.enter_layer()
    (missing,) = slots.use(key[0], (key[1],))
    reservation = slots.reserve(missing)
    assert reservation is not None
    slots.commit(key)
    return reservation.evicted


def test_slots_are_handed_on() -> None:
    slots = ExpertSlots(2, 4, 2, LeastRecentlyUsed())
    assert slots.fill([(0, 1), (0, 1), (1, 2), (1, 3)]) == [((0, 1), 0), ((1, 2), 1)]
    assert (list(slots.table(0)), list(slots.table(1))) == ([-1, 0, -1, -1], [-1, -1, 1, -1])
    slots.enter_layer()
    assert slots.use(0, (1, 3)) == [(0, 3)]
    assert slots.reserve((0, 3)) == (1, (1, 2))
    assert slots.is_coming((0, 3))
    assert slots.use(0, (3,)) == [(0, 3)]  # not before it has arrived
    slots.commit((0, 3))
    assert slots.use(0, (3, 1)) == []
    assert sorted(slots.resident) == [(0, 1), (0, 3)]
    assert (slots.held(0), slots.held(1)) == (2, 0)


def test_what_is_on_its_way_cannot_be_thrown_out() -> None:
    slots = ExpertSlots(1, 4, 1, LeastRecentlyUsed())
    slots.use(0, (1,))
    assert slots.reserve((0, 1)) == (0, None)
    slots.enter_layer()
    assert slots.reserve((0, 2)) is None
    slots.cancel((0, 1))
    assert slots.held(0) == 0
    assert slots.reserve((0, 2)) == (0, None)


def test_what_the_layer_uses_is_protected() -> None:
    slots = ExpertSlots(1, 8, 2, LeastRecentlyUsed())
    slots.fill([(0, 1), (0, 2)])
    slots.enter_layer()
    assert slots.use(0, (1, 2, 3)) == [(0, 3)]
    assert slots.reserve((0, 3)) is None
    slots.enter_layer()
    assert slots.reserve((0, 3)) == (0, (0, 1))


def test_a_layer_keeps_its_floor() -> None:
    slots = ExpertSlots(3, 4, 4, LeastRecentlyUsed(), floor=1)
    slots.fill([(0, 0), (1, 0), (1, 1), (2, 0)])
    # (0, 0) is the oldest, but the last of its layer.
    assert bring(slots, (2, 1)) == (1, 0)
    assert bring(slots, (2, 2)) == (2, 0)
    assert bring(slots, (0, 3)) == (0, 0)  # a layer may replace its own
    assert [slots.held(layer) for layer in range(3)] == [1, 1, 2]


def test_nobody_leaves_where_all_are_resident() -> None:
    slots = ExpertSlots(1, 4, 2, AllResident())
    slots.fill([(0, 0), (0, 1)])
    assert slots.reserve((0, 2)) is None


def test_fewer_slots_keep_the_experts_that_are_worth_most() -> None:
    slots = ExpertSlots(2, 4, 5, LeastRecentlyUsed(), floor=1)
    for key in [(0, 0), (1, 0), (1, 1), (1, 2), (1, 3)]:
        bring(slots, key)
    # (0, 0) is the oldest, but the last of its layer.
    assert slots.resize(3) == [((0, 0), 0), ((1, 2), 1), ((1, 3), 2)]
    assert (list(slots.table(0)), list(slots.table(1))) == ([0, -1, -1, -1], [-1, -1, 1, 2])
    assert bring(slots, (1, 0)) == (1, 2)
    assert slots.resize(1) == [((1, 0), 0)]  # no floor can be kept
    assert slots.resize(0) == []
    slots.enter_layer()
    slots.use(0, (3,))
    assert slots.reserve((0, 3)) is None
    assert slots.resize(2) == []
    assert bring(slots, (0, 3)) is None
    assert bring(slots, (1, 3)) is None
    assert bring(slots, (1, 2)) == (0, 3)


def test_slots_go_away_also_where_nobody_ever_leaves() -> None:
    slots = ExpertSlots(1, 4, 4, AllResident())
    slots.fill((0, expert) for expert in range(4))
    assert len(slots.resize(3)) == 3
    missing = next(expert for expert in range(4) if slots.table(0)[expert] < 0)
    assert slots.reserve((0, missing)) is None


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize(
    "policy",
    [LeastRecentlyUsed, lambda: ScoreWindow(30.0)],
    ids=["lru", "score"],
)
def test_the_books_balance(seed: int, policy: type[ExpertPolicy]) -> None:
    """Random uses, uploads that take a while and sometimes fail."""
    random = Random(seed)
    layers, experts, floor = 3, 8, 2
    slots = ExpertSlots(layers, experts, 11, policy(), floor=floor)
    coming: list[Key] = []
    full_floors = set()
    for step in range(1500):
        layer = step % layers
        chosen = random.sample(range(experts), 3)
        slots.enter_layer()
        for key in slots.use(layer, chosen):
            if slots.is_coming(key):
                continue
            reservation = slots.reserve(key)
            if reservation is None:
                continue
            coming.append(key)
            evicted = reservation.evicted
            if evicted is not None:
                assert not (evicted[0] == layer and evicted[1] in chosen)
                assert evicted[0] == layer or slots.held(evicted[0]) >= floor
        while coming and random.random() < 0.7:
            key = coming.pop(random.randrange(len(coming)))
            if random.random() < 0.1:
                slots.cancel(key)
            else:
                slots.commit(key)
        if not coming and random.random() < 0.02:
            before = slots.resident
            placed = dict(slots.resize(random.randint(layers * floor, 11)))
            assert set(placed) == set(slots.resident) <= set(before)
            assert len(placed) == min(len(before), slots.slots)
        used = [slot for one in range(layers) for slot in slots.table(one) if slot >= 0]
        assert all(slot < slots.slots for slot in used)
        assert len(used) == len(set(used)) == len(slots.resident)
        held = sum(slots.held(one) for one in range(layers))
        assert held == len(used) + len(coming) <= slots.slots
        full_floors |= {one for one in range(layers) if slots.held(one) >= floor}
    assert full_floors == {0, 1, 2}
