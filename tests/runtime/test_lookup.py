"""Prompt lookup without a model: the index, what is worth checking, and its bookkeeping."""

from __future__ import annotations

import random

import pytest

from xverse_runtime.lookup import MOST, SIZES, Lookup, Match, NgramIndex, replay
from xverse_runtime.lookup_policy import LONGEST, PROBE, LookupPolicy, PassTimes
from xverse_runtime.types import Pass

COPIED = random.Random(5).choices(range(1000), k=300)


def moe(tokens: int) -> float:
    """Bytes that the experts of so many tokens add up to, about as measured at full size."""
    return 1 + 0.47 * (tokens - 1)


def dense(tokens: int) -> float:
    return 1 + 0.02 * (tokens - 1)


def share(passes: list[Pass], cost: object) -> float:
    """Time relative to one token a pass."""
    tokens = sum(1 + one.accepted for one in passes)
    return sum(cost(1 + one.proposed) for one in passes) / tokens  # type: ignore[operator]


def searched(ids: list[int]) -> Match | None:
    """What the index should find, by looking everywhere."""
    for size in SIZES:
        for place in range(len(ids) - 1, size - 1, -1):
            if ids[place - size : place] == ids[len(ids) - size :]:
                length = size
                while length < min(place, LONGEST) and ids[place - 1 - length] == ids[-1 - length]:
                    length += 1
                return Match(place, length)
    return None


@pytest.mark.parametrize("vocabulary", [1, 2, 3, 8, 40])
def test_the_index_finds_what_a_search_finds(vocabulary: int) -> None:
    rng = random.Random(vocabulary)
    for _ in range(20):
        ids = [rng.randrange(vocabulary) for _ in range(rng.randrange(4))]
        index = NgramIndex(ids)
        for _ in range(120):
            new = [rng.randrange(vocabulary)]
            if ids and rng.random() < 0.1:
                again = rng.randrange(len(ids))
                new = ids[again : again + 9]
            for token in new:
                ids.append(token)
                index.append(token)
            assert index.match() == searched(ids)


def test_an_empty_or_new_text_has_no_match() -> None:
    assert NgramIndex([]).match() is None
    assert NgramIndex([7]).match() is None
    assert NgramIndex(range(50)).match() is None


def test_the_latest_of_the_longest_occurrences_counts() -> None:
    index = NgramIndex([1, 2, 10, 9, 2, 11, 8, 1, 2])
    assert index.match() == Match(2, 2)
    index = NgramIndex([1, 2, 10, 1, 2, 11, 8, 1, 2])
    assert index.match() == Match(5, 2)


def test_a_period_goes_on() -> None:
    index = NgramIndex([4, 5, 6, 4, 5, 6, 4])
    match = index.match()
    assert match is not None
    assert index.continuation(match.place, 7) == [5, 6, 4, 5, 6, 4, 5]
    assert index.continuation(match.place, 0) == []


def test_times_of_sizes_that_were_not_seen_follow_the_nearest() -> None:
    times = PassTimes()
    guess = times.relative(3)
    assert guess > 1
    times.add(1, 2.0)
    assert times.relative(1) == 1
    assert times.relative(3) == guess
    times.add(4, 5.0)
    assert [times.relative(n) for n in (1, 2, 4, 7)] == [1, 1.5, 2.5, 4]
    times.add(2, 3.6)
    assert [times.relative(n) for n in (2, 3, 4)] == pytest.approx([1.8, 2.6, 2.5])


def test_one_disturbed_pass_changes_no_time() -> None:
    times = PassTimes()
    for seconds in (1.0, 1.0, 50.0, 1.0):
        times.add(1, seconds)
    times.add(2, 1.5)
    assert times.relative(2) == 1.5
    times = PassTimes()
    times.add(1, 1.0)
    times.add(2, 0.5)  # more cannot take less
    assert times.relative(9) == 1


def settled(cost: float, hits: float, matched: int = 4) -> LookupPolicy:
    """A policy that has seen passes and matches of one length for a while."""
    policy = LookupPolicy()
    rng = random.Random(0)
    for _ in range(200):
        for length in (matched, 2 * matched, 4 * matched, LONGEST):
            policy.predicted(length, rng.random() < hits)
    policy.timed(0, 1.0)
    policy.timed(1, 1 + cost)
    return policy


def test_a_proposal_is_worth_it_when_likelier_than_it_is_dear() -> None:
    assert settled(0.5, 0.1).count(4, MOST) == 0
    assert settled(0.05, 0.25).count(4, MOST) >= 1
    assert settled(0.47, 0.97).count(4, MOST) >= 3
    assert settled(0.02, 0.98).count(4, MOST) == MOST
    assert settled(0.02, 0.98).count(4, 3) == 3
    assert settled(0.02, 0.98).count(4, 0) == 0


def test_nothing_is_proposed_before_a_plain_pass_was_timed() -> None:
    policy = LookupPolicy()
    assert policy.count(LONGEST, MOST) == 0
    policy.timed(0, 1.0)
    assert policy.count(LONGEST, MOST) > 0


def test_what_is_not_done_is_tried_now_and_then() -> None:
    policy = settled(3.0, 0.0)
    for _ in range(PROBE):
        assert policy.count(4, MOST) == 0
        policy.timed(0, 1.0)
    assert policy.count(4, MOST) == 1
    assert policy.count(4, 0) == 0
    policy.timed(1, 1.0)
    policy = settled(0.02, 1.0)
    for _ in range(PROBE):
        assert policy.count(4, 1) <= 1
        policy.timed(1, 1.02)
    assert policy.count(4, MOST) == 0
    policy.timed(0, 1.0)
    assert policy.count(4, MOST) > 0


@pytest.mark.parametrize("cost", [moe, dense])
def test_text_without_repetition_costs_almost_nothing(cost: object) -> None:
    rng = random.Random(1)
    vocabulary = range(3000)
    text = rng.choices(vocabulary, [1 / (one + 1) for one in vocabulary], k=3000)
    assert share(replay(text[:500], text[500:], cost), cost) < 1.02  # type: ignore[arg-type]


@pytest.mark.parametrize(("cost", "most"), [(moe, 0.75), (dense, 0.15)])
def test_copies_take_less_time(cost: object, most: float) -> None:
    passes = replay([*COPIED, 7, 8], [*COPIED, *COPIED], cost)  # type: ignore[arg-type]
    assert sum(1 + one.accepted for one in passes) == 2 * len(COPIED) - 1
    assert share(passes, cost) < most
    right = sum(one.accepted for one in passes) / sum(one.proposed for one in passes)
    assert right > 0.9


def test_a_text_that_stops_repeating_itself_is_left_alone_soon() -> None:
    rng = random.Random(3)
    fresh = [rng.randrange(40) for _ in range(2000)]  # full of short matches, none of them right
    prompt = [*COPIED, 7, 8]
    passes = replay(prompt, [*COPIED, *fresh], moe)
    tokens = 0
    while tokens < len(COPIED):
        tokens += 1 + passes.pop(0).accepted
    assert share(passes, moe) < 1.03


def test_nothing_is_proposed_beyond_the_last_token() -> None:
    for limit in range(1, 9):
        passes = replay([5] * 40, [5] * limit, dense)
        assert sum(1 + one.proposed for one in passes) == limit - 1


def test_only_tokens_that_were_chosen_count_as_accepted() -> None:
    policy = LookupPolicy()
    policy.timed(0, 1.0)
    policy.timed(4, 1.0)
    lookup = Lookup([1, 2, 3, 4, 5, 6, 7, 1, 2, 3, 4], 100, policy)
    assert lookup.propose()[:3] == [5, 6, 7]
    lookup.passed(1.0)
    assert lookup.chosen(5)
    assert lookup.chosen(6)
    assert not lookup.chosen(9)
    assert not lookup.chosen(7)  # nothing is known beyond the first difference
    assert lookup.passes == [Pass(lookup.passes[0].proposed, 2)]
