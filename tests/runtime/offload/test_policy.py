"""Policies on traces small enough to follow by hand, and against the one that knows the future."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from math import exp
from random import Random

import pytest

from xverse_runtime.offload.expert_slots import ExpertSlots
from xverse_runtime.offload.policy import (
    AllResident,
    Belady,
    ExpertPolicy,
    Key,
    LeastFrequentlyUsed,
    LeastRecentlyUsed,
    ScoreWindow,
    Static,
)


def hits(policy: ExpertPolicy, uses: Sequence[Key], slots: int, layers: int = 1) -> str:
    """One letter for each use, one access at a time, no floors: hit (+), miss (-)."""
    book = ExpertSlots(layers, 64, slots, policy)
    letters = ""
    for layer, expert in uses:
        book.enter_layer()
        missing = book.use(layer, (expert,))
        letters += "-" if missing else "+"
        for key in missing:
            if book.reserve(key):
                book.commit(key)
    return letters


def of_one_layer(text: str) -> list[Key]:
    return [(0, ord(letter) - ord("a")) for letter in text]


ABCABCAADA = of_one_layer("abcabcaada")


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        # Two slots. LRU always has just thrown out what comes next, until a stays.
        (LeastRecentlyUsed(), "------" + "-+-+"),
        # LFU here too: of those with the fewest uses, the older one is what comes next.
        (LeastFrequentlyUsed(), "------" + "-+-+"),
        # c stays out while a and b are hits, and again; so does d.
        (Belady(ABCABCAADA), "---++-" + "++-+"),
        (Static([(0, 0), (0, 1)]), "---++-" + "++-+"),
        (AllResident(), "---++-" + "++-+"),
        (ScoreWindow(1e-3, bypasses=False), "------" + "-+-+"),
    ],
    ids=lambda one: type(one).__name__ if not isinstance(one, str) else "",
)
def test_hits_of_a_tiny_trace(policy: ExpertPolicy, expected: str) -> None:
    assert hits(policy, ABCABCAADA, 2) == expected


def test_lru_and_lfu_differ_where_they_should() -> None:
    # a is used three times, then new ones pass through: LRU forgets it, LFU does not.
    uses = of_one_layer("aaabcdae")
    assert hits(LeastRecentlyUsed(), uses, 2) == "-++-----"
    assert hits(LeastFrequentlyUsed(), uses, 2) == "-++---+-"


def test_belady_that_must_admit() -> None:
    # Two slots, a b resident. c comes in for b (used after a): a hits, b does not.
    uses = of_one_layer("abcab")
    assert hits(Belady(uses, bypasses=False), uses, 2) == "---+-"
    assert hits(Belady(uses), uses, 2) == "---++"


def test_a_score_fades() -> None:
    uses = of_one_layer("aabcb")
    # Counting for ever keeps a (2 uses) when c comes; with a half-life of one use, b (1/2) is above
    # a (1/4 + 1/8).
    assert hits(ScoreWindow(1e6, bypasses=False), uses, 2) == "-+---"
    assert hits(ScoreWindow(1.0, bypasses=False), uses, 2) == "-+--+"


@pytest.mark.parametrize(("minds", "victim"), [(False, (0, 1)), (True, (0, 2))])
def test_runners_up_count_if_asked(minds: bool, victim: Key) -> None:
    policy = ScoreWindow(1e6, runners_up=minds)
    for expert in (1, 2, 3):
        policy.on_use((0, expert), 0.2)
        policy.place((0, expert))
    policy.on_use((0, 1), 0.05, chosen=False)  # as a quarter of a use
    policy.on_use((0, 3), 0.1, chosen=False)
    assert policy.victim((0, 3), lambda _key: True) == victim


def test_runners_up_count_by_how_near_they_were() -> None:
    policy = ScoreWindow(1e6)
    policy.on_use((0, 0), 0.4)
    policy.on_use((0, 1), 0.2)
    policy.on_use((0, 2), 0.1, chosen=False)
    assert exp(policy.rank((0, 2))[0]) == pytest.approx(0.5, rel=1e-4)
    policy.on_use((0, 3), 0.0, chosen=False)
    assert policy.rank((0, 3)) == (float("-inf"),)


def test_newcomers_that_score_lowest_stay_out() -> None:
    for bypasses, expected in ((True, None), (False, (0, 1))):
        policy = ScoreWindow(1e6, bypasses=bypasses)
        for expert in (1, 1, 2, 2, 3):
            policy.on_use((0, expert))
        policy.place((0, 1))
        policy.place((0, 2))
        assert policy.victim((0, 3), lambda _key: True) == expected


def test_a_score_never_overflows() -> None:
    policy = ScoreWindow(10.0)
    for place in range(100_000):
        policy.on_use((0, place % 3))
    policy.place((0, 0))
    assert 0 < policy.rank((0, 0))[0] < float("inf")


def random_uses(seed: int, layers: int, count: int) -> list[Key]:
    """Skewed and clustered, so that policies differ."""
    random = Random(seed)
    near = [random.randrange(12) for _ in range(layers)]
    uses = []
    for place in range(count):
        layer = place % layers
        if random.random() < 0.1:
            near[layer] = random.randrange(12)
        expert = int(random.expovariate(0.4)) + near[layer] * (random.random() < 0.6)
        uses.append((layer, expert % 16))
    return uses


POLICIES: list[Callable[[], ExpertPolicy]] = [
    LeastRecentlyUsed,
    LeastFrequentlyUsed,
    lambda: ScoreWindow(20.0),
    lambda: ScoreWindow(20.0, bypasses=False),
    lambda: Static([(0, 0), (0, 1), (1, 0), (1, 1), (2, 3)]),
]


@pytest.mark.parametrize("seed", range(20))
def test_belady_has_most_hits(seed: int) -> None:
    uses = random_uses(seed, 1 + seed % 3, 600)
    for slots in (1, 2, 5, 11, 30):
        best = hits(Belady(uses), uses, slots, 3).count("+")
        forced = hits(Belady(uses, bypasses=False), uses, slots, 3).count("+")
        assert forced <= best
        for policy in POLICIES:
            assert hits(policy(), uses, slots, 3).count("+") <= best


@pytest.mark.parametrize("seed", range(6))
def test_more_slots_do_not_hurt(seed: int) -> None:
    uses = random_uses(seed, 2, 2000)
    for policy in (*POLICIES, lambda: Belady(uses)):
        counts = [hits(policy(), uses, slots, 3).count("+") for slots in range(1, 33, 3)]
        for fewer, more in pairwise(counts):
            assert more >= fewer - 0.02 * len(uses)
        assert counts[-1] > counts[0]
    stack = [hits(LeastRecentlyUsed(), uses, slots, 3).count("+") for slots in range(1, 33)]
    assert stack == sorted(stack)  # of LRU this is a theorem


def test_the_heap_stays_small() -> None:
    policy = LeastRecentlyUsed()
    hits(policy, random_uses(1, 2, 5000), 8, 2)
    assert len(policy._heap) <= 8 * 8 + 65
