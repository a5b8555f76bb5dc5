"""The rules that runtime and simulator share."""

from __future__ import annotations

import pytest

from xverse_runtime.offload.coordinator import MOST_WISHES, Coordinator, Decision
from xverse_runtime.offload.costs import LinearCost
from xverse_runtime.offload.expert_slots import ExpertSlots
from xverse_runtime.offload.policy import Key, LeastRecentlyUsed, ScoreWindow
from xverse_runtime.offload.scheduler import MissScheduler


class Rules(Coordinator):
    """Two slots or so of two layers of eight experts; CPU and link take a second an expert."""

    def __init__(
        self,
        slots: int,
        only: str = "cpu",
        *,
        window: bool = False,
        pinned: bool = True,
        layers: int = 2,
        most_now: int | None = None,
    ) -> None:
        policy = ScoreWindow(100) if window else LeastRecentlyUsed()
        scheduler = MissScheduler(100, LinearCost(0.0, 100.0), LinearCost(0.0, 100.0))
        book = ExpertSlots(layers, 8, slots, policy)
        super().__init__(book, scheduler, is_pinned=lambda key: pinned, most_now=most_now)
        self._only = only

    def token(
        self, layer: int, experts: list[int], *, link_busy_s: float = 0.0, idle_s: float = 0.0
    ) -> Decision:
        """A token goes to these: everything that is decided and noted about it."""
        decision = self.decide(
            self.missing(layer, experts),
            link_busy_s=link_busy_s,
            idle_s=idle_s,
            only=self._only,  # type: ignore[arg-type]
        )
        self.slots.enter_layer()
        self.note(layer, experts, None, len(experts))
        return decision


def test_a_miss_is_computed_uploaded_and_then_a_hit() -> None:
    one = Rules(slots=2)
    decision = one.token(0, [3, 5], idle_s=5.0)
    assert (decision.split.cpu, decision.split.now) == (((0, 3), (0, 5)), ())
    begun = one.begin_upload()
    assert begun is not None
    assert begun[0] == (0, 3)
    assert one.slots.is_coming((0, 3))
    assert one.missing(0, [3, 5]) == [(0, 3), (0, 5)]
    assert one.arrived() == (0, 3)
    assert one.missing(0, [3, 5, 5]) == [(0, 5)]
    begun = one.begin_upload()
    assert begun is not None
    assert begun[0] == (0, 5)


def test_what_is_wanted_most_crosses_first() -> None:
    one = Rules(slots=2, only="link")
    one.token(0, [6])
    assert one.token(0, [3, 5, 6]).split.now == ((0, 6), (0, 3), (0, 5))


def test_no_more_cross_than_there_is_room_for() -> None:
    one = Rules(slots=4, only="link", most_now=2)
    decision = one.token(0, [1, 2, 3])
    assert decision.split.now == ((0, 1), (0, 2))
    assert decision.split.cpu == decision.only_cpu == ((0, 3),)


def test_an_expert_on_its_way_is_waited_for_when_it_comes_sooner_than_the_cpu() -> None:
    one = Rules(slots=2)
    one.token(0, [3], idle_s=5.0)
    assert one.begin_upload() is not None
    soon = one.token(0, [3], link_busy_s=0.5)
    assert (soon.awaited, soon.split.cpu) == (((0, 3),), ())
    late = one.token(0, [3], link_busy_s=1.5)
    assert (late.awaited, late.split.cpu) == ((), ((0, 3),))
    one.arrived()
    assert one.begin_upload() is None  # it was not asked for once more


def test_an_expert_may_come_while_the_host_learns_of_the_choice() -> None:
    """The GPU has looked up its table before: it is told to compute the expert after all."""
    one = Rules(slots=2)
    one.token(0, [3], idle_s=5.0)
    assert one.begin_upload() is not None
    missing = one.missing(0, [3])
    one.arrived()
    decision = one.decide(missing)
    assert (decision.awaited, decision.split.cpu, decision.split.now) == (((0, 3),), (), ())


@pytest.mark.parametrize("window", [False, True])
def test_what_crosses_gets_a_slot_where_the_policy_likes_it(window: bool) -> None:
    one = Rules(slots=1, only="link", window=window)
    assert one.token(0, [1]).split.now == ((0, 1),)
    assert one.keep((0, 1)) is not None
    for _ in range(3):
        assert one.token(0, [1]).split.now == ()
    assert one.token(0, [2]).split.now == ((0, 2),)
    kept = one.keep((0, 2))
    assert (kept is None) == window
    if kept is not None:
        assert kept.evicted == (0, 1)
        assert one.keep((0, 2)) is None  # it has one


def test_the_current_layer_keeps_what_it_uses() -> None:
    one = Rules(slots=1, only="link")
    one.token(0, [1])
    one.keep((0, 1))
    assert one.token(0, [1, 2]).split.now == ((0, 2),)
    assert one.keep((0, 2)) is None


def test_only_the_cpu_computes_what_is_not_pinned() -> None:
    one = Rules(slots=4, only="link", pinned=False)
    decision = one.token(0, [1, 2])
    assert decision.split.cpu == decision.only_cpu == ((0, 1), (0, 2))
    assert decision.split.now == ()
    begun = one.begin_upload()  # by a buffer, when there is time
    assert begun is not None
    assert begun[0] == (0, 1)


def test_wishes_do_not_pile_up_and_the_last_come_first() -> None:
    one = Rules(slots=64, layers=64)
    for layer in range(64):
        one.token(layer, [1, 2], idle_s=100.0)
    begun: list[Key] = []
    while (upload := one.begin_upload()) is not None:
        assert one.arrived() == upload[0]
        begun.append(upload[0])
    assert begun[0] == (63, 1)
    assert len(begun) <= MOST_WISHES


def test_nothing_missing_is_nothing_to_do() -> None:
    decision = Rules(slots=2).decide([])
    assert decision == Decision(decision.split)
    assert (decision.split.cpu, decision.split.now, decision.split.background) == ((), (), ())
