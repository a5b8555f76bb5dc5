"""Sampling against transformers' processors, and at the edges."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.runtime.helpers import GOLDEN
from xverse_runtime.errors import UsageError
from xverse_runtime.sampling import (
    check_params,
    choose_token,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    penalise_repetition,
    token_logprob,
    token_probabilities,
)
from xverse_runtime.types import SamplingParams

CASES: list[dict[str, Any]] = json.loads((GOLDEN / "sampling.json").read_text())
TENSORS = load_file(GOLDEN / "sampling.safetensors")
NONE = torch.empty(0, dtype=torch.int64)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("number", range(len(CASES)))
def test_probabilities_are_those_of_transformers(number: int) -> None:
    params = SamplingParams(**CASES[number])
    actual = token_probabilities(TENSORS[f"logits.{number}"], TENSORS[f"history.{number}"], params)
    expected = TENSORS[f"probs.{number}"]
    assert torch.equal(actual > 0, expected > 0)
    assert (actual - expected).abs().max() < 1e-6


def test_the_penalty_counts_a_repeated_id_once_and_divides_or_multiplies() -> None:
    logits = torch.tensor([2.0, -2.0, 1.0])
    assert penalise_repetition(logits, torch.tensor([0, 1, 0]), 2.0).tolist() == [1.0, -4.0, 1.0]
    assert logits.tolist() == [2.0, -2.0, 1.0]
    assert penalise_repetition(logits, NONE, 2.0) is logits


def test_top_k_keeps_ties() -> None:
    kept = keep_top_k(torch.tensor([1.0, 3.0, 2.0, 2.0]), 2).isfinite()
    assert kept.tolist() == [False, True, True, True]


def test_top_p_always_keeps_the_likeliest() -> None:
    assert keep_top_p(torch.tensor([1.0, 5.0, 2.0]), 1e-9).isfinite().sum() == 1


@pytest.mark.parametrize("spread", [0.0, 0.5, 8.0])
@pytest.mark.parametrize("top_p", [0.1, 0.85, 0.999])
def test_top_p_of_a_large_vocabulary_is_that_of_all_tokens_sorted(
    spread: float, top_p: float
) -> None:
    """Few tokens kept or thousands, whether or not the first thousand decide."""
    logits = torch.randn(5000, generator=generator()) * spread
    ascending, order = logits.double().sort(stable=True)
    kept = order[ascending.softmax(-1).cumsum(-1) > 1 - top_p]
    actual = keep_top_p(logits, top_p)
    # Rounding may decide about the last one; of equals any may be kept.
    assert abs(int(actual.isfinite().sum()) - kept.numel()) <= 1
    if spread:
        assert set(actual.isfinite().nonzero().flatten().tolist()) ^ set(kept.tolist()) <= {
            int(kept[0]),
            int(order[-kept.numel() - 1]),
        }
    assert torch.equal(actual[actual.isfinite()], logits[actual.isfinite()])


def test_min_p_is_relative_to_the_likeliest() -> None:
    logits = torch.tensor([0.5, 0.3, 0.2]).log()
    assert keep_min_p(logits, 0.5).isfinite().tolist() == [True, True, False]
    assert keep_min_p(logits, 1.0).isfinite().sum() == 1


@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_temperature_zero_is_greedy_after_the_penalty(penalty: float) -> None:
    logits, params = torch.tensor([1.0, 1.1]), SamplingParams(0, repetition_penalty=penalty)
    assert choose_token(logits, torch.tensor([1]), params, generator()) == (penalty == 1.0)


def test_a_seed_repeats_its_choices_and_frequencies_follow_the_distribution() -> None:
    logits, params = torch.tensor([0.7, 0.2, 0.1]).log(), SamplingParams()
    first, second = generator(5), generator(5)
    draws = [choose_token(logits, NONE, params, first) for _ in range(4000)]
    assert draws == [choose_token(logits, NONE, params, second) for _ in range(4000)]
    shares = torch.bincount(torch.tensor(draws), minlength=3) / 4000
    assert (shares - torch.tensor([0.7, 0.2, 0.1])).abs().max() < 0.03


def test_masked_tokens_are_never_drawn() -> None:
    logits = torch.arange(50.0) / 50
    params = SamplingParams(top_k=3)
    source = generator()
    assert {choose_token(logits, NONE, params, source) for _ in range(500)} == {47, 48, 49}


def test_logprobs_are_the_plain_models() -> None:
    logits = torch.tensor([2.0, 1.0, 0.0])
    result = token_logprob(logits, 2, 2)
    assert result.logprob == pytest.approx(logits.log_softmax(-1)[2].item())
    assert [token for token, _ in result.top] == [0, 1]
    assert len(token_logprob(logits, 0, 99).top) == 3
    assert token_logprob(logits, 0, 0).top == ()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.5),
        ("min_p", -0.5),
        ("repetition_penalty", 0.0),
        ("max_new_tokens", 0),
        ("seed", -1),
        ("stop", ("",)),
        ("logprobs", -1),
    ],
)
def test_impossible_settings_are_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(UsageError) as caught:
        check_params(SamplingParams(**{name: value}))
    assert (caught.value.code, caught.value.params["name"]) == ("sampling.bad_value", name)


@pytest.mark.parametrize("changes", [{"temperature": 1e-40}, {"repetition_penalty": 1e-40}])
def test_extreme_settings_still_choose_a_token(changes: dict[str, float]) -> None:
    params = SamplingParams(**changes)  # type: ignore[arg-type]
    logits, history = torch.tensor([1.0, 3.0, -2.0]), torch.tensor([0, 2])
    token = choose_token(logits, history, params, generator())
    assert token == (1 if "temperature" in changes else 0)
