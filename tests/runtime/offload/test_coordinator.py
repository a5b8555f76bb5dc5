"""The rules that runtime and simulator share."""

from __future__ import annotations

from xverse_runtime.offload.coordinator import MOST_WISHES, Coordinator
from xverse_runtime.offload.costs import LinearCost
from xverse_runtime.offload.expert_slots import ExpertSlots
from xverse_runtime.offload.policy import Key, LeastRecentlyUsed, ScoreWindow
from xverse_runtime.offload.scheduler import MissScheduler


def rules(
    slots: int, only: str = "cpu", *, window: bool = False, pinned: bool = True, layers: int = 2
) -> Coordinator:
    policy = ScoreWindow(100) if window else LeastRecentlyUsed()
    book = ExpertSlots(layers, 8, slots, policy)
    cost = LinearCost(0.0, 100.0)
    scheduler = MissScheduler(100, cost, LinearCost(0.0, 100.0), only=only)  # type: ignore[arg-type]
    return Coordinator(book, scheduler, is_pinned=lambda key: pinned)


def test_a_miss_is_computed_uploaded_and_then_a_hit() -> None:
    one = rules(slots=2)
    missing = one.look_up(0, [3, 5, 6], None, top_k=2)
    assert missing == [(0, 5), (0, 3)]  # the one that was used last is worth most
    decision = one.decide(missing, idle_s=5.0)
    assert (decision.split.cpu, decision.split.now) == (((0, 5), (0, 3)), ())
    assert one.begin_upload() == (0, 5)
    assert one.look_up(0, [3, 5], None, top_k=2) == [(0, 5), (0, 3)]
    one.arrived((0, 5))
    assert one.look_up(0, [3, 5], None, top_k=2) == [(0, 3)]
    assert one.begin_upload() == (0, 3)


def test_an_expert_on_its_way_is_waited_for_when_it_comes_sooner_than_the_cpu() -> None:
    one = rules(slots=2)
    one.decide(one.look_up(0, [3], None, 1), idle_s=5.0)
    assert one.begin_upload() == (0, 3)
    soon = one.decide(one.look_up(0, [3], None, 1), link_busy_s=0.5)
    assert (soon.awaited, soon.split.cpu) == (((0, 3),), ())
    late = one.decide(one.look_up(0, [3], None, 1), link_busy_s=1.5)
    assert (late.awaited, late.split.cpu) == ((), ((0, 3),))
    one.arrived((0, 3))
    assert one.begin_upload() is None  # it was not asked for once more


def test_an_expert_may_come_while_the_host_learns_of_the_choice() -> None:
    """The GPU has looked up its table before: it is told to compute the expert after all."""
    one = rules(slots=2)
    one.decide(one.look_up(0, [3], None, 1), idle_s=5.0)
    assert one.begin_upload() == (0, 3)
    missing = one.look_up(0, [3], None, 1)
    one.arrived((0, 3))
    decision = one.decide(missing)
    assert (decision.awaited, decision.split.cpu, decision.split.now) == (((0, 3),), (), ())


def test_what_crosses_gets_a_slot_where_the_policy_likes_it() -> None:
    likes, dislikes = rules(slots=1, only="link"), rules(slots=1, only="link", window=True)
    for one, stays in ((likes, ((0, 2),)), (dislikes, ())):
        first = one.decide(one.look_up(0, [1], None, 1))
        assert (first.split.now, first.stays) == (((0, 1),), ((0, 1),))
        one.arrived((0, 1))
        for _ in range(3):
            assert one.look_up(0, [1], None, 1) == []
        second = one.decide(one.look_up(0, [2], None, 1))
        assert (second.split.now, second.stays) == (((0, 2),), stays)


def test_what_crosses_gets_no_slot_where_that_is_not_wanted() -> None:
    one = rules(slots=4, only="link")
    one = Coordinator(one.slots, one.scheduler, keeps_crossed=False)
    decision = one.decide(one.look_up(0, [1, 2], None, 2))
    assert (len(decision.split.now), decision.stays) == (2, ())
    assert one.look_up(0, [1, 2], None, 2) == [(0, 2), (0, 1)]


def test_the_current_layer_keeps_what_it_uses() -> None:
    one = rules(slots=1, only="link")
    one.decide(one.look_up(0, [1], None, 1))
    one.arrived((0, 1))
    decision = one.decide(one.look_up(0, [1, 2], None, 2))
    assert (decision.split.now, decision.stays) == (((0, 2),), ())


def test_only_the_cpu_computes_what_is_not_pinned() -> None:
    one = rules(slots=4, only="link", pinned=False)
    decision = one.decide(one.look_up(0, [1, 2], None, 2))
    assert (sorted(decision.split.cpu), decision.split.now) == ([(0, 1), (0, 2)], ())
    assert one.begin_upload() in {(0, 1), (0, 2)}  # by a buffer, when there is time


def test_wishes_do_not_pile_up() -> None:
    one = rules(slots=4, pinned=False, layers=64)
    for layer in range(64):
        one.decide(one.look_up(layer, [1, 2], None, 2))
    begun: list[Key] = []
    while (key := one.begin_upload()) is not None:
        one.arrived(key)
        begun.append(key)
    assert len(begun) == MOST_WISHES
    assert begun[-1][0] == 63
