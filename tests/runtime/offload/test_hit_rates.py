"""The published curves, and the generator that was fitted to them."""

from __future__ import annotations

from itertools import pairwise

import pytest

from xverse_runtime.offload.expert_slots import ExpertSlots
from xverse_runtime.offload.hit_rates import EXPERTS, PUBLISHED, hit_rate
from xverse_runtime.offload.policy import (
    Belady,
    ExpertPolicy,
    LeastFrequentlyUsed,
    LeastRecentlyUsed,
)
from xverse_runtime.offload.replay import chosen_keys, replay, replay_by_token
from xverse_runtime.offload.synthetic_routing import XVERSE_A4_2B, RoutingModel, SyntheticRouting
from xverse_runtime.offload.trace import RoutedToken

SLOTS = (6, 12, 18, 24, 36, 48)
TEXT_TOKENS = 512  # of the texts that were measured


def test_the_curves_interpolate() -> None:
    assert hit_rate("lru", 36) == 0.7705
    assert hit_rate("lru", 36.5) == pytest.approx((0.7705 + 0.7825) / 2)
    assert hit_rate("belady", 20, experts=40) == hit_rate("belady", 32)
    for policy in PUBLISHED:
        assert (hit_rate(policy, 0), hit_rate(policy, 64), hit_rate(policy, 99)) == (0, 1, 1)
        rates = [hit_rate(policy, slots / 4) for slots in range(4 * EXPERTS + 1)]
        assert all(one <= two for one, two in pairwise(rates))
        assert len(PUBLISHED[policy]) == EXPERTS + 1


def text(seed: int, number: int, tokens: int, model: RoutingModel = XVERSE_A4_2B):  # type: ignore[no-untyped-def]
    return list(SyntheticRouting(model, seed).text(number, tokens))


def test_a_seed_is_a_trace() -> None:
    small = RoutingModel(layers=2, experts=8, top_k=2)
    assert text(1, 0, 20, small) == text(1, 0, 20, small)
    assert text(1, 0, 20, small) != text(2, 0, 20, small)
    assert text(1, 0, 20, small) != text(1, 1, 20, small)
    # Written down: the generator and Python's `random` stay what they are.
    expected = [((6, 1), (7, 5)), ((4, 1), (1, 5)), ((7, 1), (1, 0))]
    assert [token.experts for token in text(1, 0, 3, small)] == expected
    for token in SyntheticRouting(small, 3).text(0, 50, listed=5):
        assert token.probabilities is not None
        for experts, probabilities in zip(token.experts, token.probabilities, strict=True):
            assert len(set(experts)) == 5
            assert list(probabilities) == sorted(probabilities, reverse=True)
            assert 0 < sum(probabilities) < 1


@pytest.fixture(scope="module")
def published_like() -> list[RoutedToken]:
    return text(1, 0, TEXT_TOKENS)


def policy_of(name: str, tokens: list[RoutedToken]) -> ExpertPolicy:
    if name == "belady":
        return Belady(chosen_keys(tokens, XVERSE_A4_2B.top_k), bypasses=False)
    return {"lru": LeastRecentlyUsed, "lfu": LeastFrequentlyUsed}[name]()


def slots_of(count: int, policy: ExpertPolicy) -> ExpertSlots:
    model = XVERSE_A4_2B
    return ExpertSlots(model.layers, model.experts, model.layers * count, policy)


@pytest.mark.parametrize("name", PUBLISHED)
def test_hit_rates_are_the_published_ones(name: str, published_like: list[RoutedToken]) -> None:
    """Counted as they were counted, within 3 points; docs/offload.md has the mean of many texts."""
    for count in SLOTS:
        slots = slots_of(count, policy_of(name, published_like))
        rate = replay_by_token(published_like, slots, XVERSE_A4_2B.top_k).rate
        assert rate == pytest.approx(hit_rate(name, count), abs=0.03), count


def test_the_order_of_the_runtime_costs_a_few_points(published_like: list[RoutedToken]) -> None:
    for count, most in ((12, 0.05), (36, 0.03)):
        counted = replay_by_token(published_like, slots_of(count, LeastRecentlyUsed()), 6).rate
        real = replay(published_like, slots_of(count, LeastRecentlyUsed()), 6).rate
        assert counted - most < real < counted
