"""The sampler against the runtime's, draw by draw: the random numbers are known."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.kernels.triton.interpreter import CPU, NAN, guarded, randn, uniform_kernel
from tests.runtime.helpers import GOLDEN
from xverse_kernels.triton import sampling
from xverse_kernels.triton.sampling import CANDIDATES, SamplerState, sample
from xverse_runtime.sampling import choose_token, token_probabilities
from xverse_runtime.types import SamplingParams

CASES: list[dict[str, Any]] = json.loads((GOLDEN / "sampling.json").read_text())
TENSORS = load_file(GOLDEN / "sampling.safetensors")
NONE = torch.empty(0, dtype=torch.int64)
UNDECIDED = 1e-5  # a random number so near to the edge between two tokens tells nothing


@pytest.fixture(autouse=True)
def several_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small vocabularies are cut into blocks too."""
    monkeypatch.setattr(sampling, "BLOCK", 32)


def state_of(params: SamplingParams, vocab: int, history: Tensor, draws: int) -> SamplerState:
    """Independent draws: one for each of so many sequences."""
    state = SamplerState.empty(draws, vocab, CPU)
    state.settings[:] = torch.tensor(
        [params.temperature, params.repetition_penalty, params.top_p, params.min_p]
    )
    state.top_k[:] = params.top_k or min(sampling.CANDIDATES, vocab)
    state.seeds[:] = torch.arange(draws) * 0x1F3D5B79A + 11  # most need more than 32 bits
    state.steps[:] = torch.arange(draws) % 7
    state.seen[:, history] = 1
    return replace(state, seen=guarded(state.seen), tokens=guarded(state.tokens))


def check_draws(logits: Tensor, params: SamplingParams, history: Tensor, draws: int) -> set[int]:
    """Every draw is the one that the runtime's distribution and the random number give."""
    state = state_of(params, logits.numel(), history, draws)
    steps, seen, numbers = state.steps.clone(), state.seen.clone(), torch.full((draws,), NAN)
    uniform_kernel[(draws,)](state.seeds, steps, numbers)
    tokens = sample(guarded(logits.repeat(draws, 1)), state)
    assert tokens is state.tokens
    probabilities = token_probabilities(logits, history, params).double()
    likeliest = probabilities.sort(descending=True, stable=True)
    ends = likeliest.values.cumsum(0) / likeliest.values.sum()
    assert (probabilities[tokens] > 0).all()
    decided = (ends - numbers.unsqueeze(1)).abs().amin(1) > UNDECIDED
    assert decided.float().mean() > 0.8
    places = (ends <= numbers.unsqueeze(1)).sum(1)
    assert torch.equal(tokens[decided], likeliest.indices[places[decided]])
    assert torch.equal(state.steps, steps + 1)
    assert torch.equal(state.seen, seen.index_put((torch.arange(draws), tokens), seen.new_ones(())))
    return set(tokens.tolist())


@pytest.mark.parametrize("number", range(len(CASES)))
def test_golden_distributions(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "BLOCK", 512)
    params = SamplingParams(**CASES[number])
    params = replace(params, top_k=min(params.top_k or CANDIDATES, CANDIDATES))
    logits, history = TENSORS[f"logits.{number}"], TENSORS[f"history.{number}"]
    golden = TENSORS[f"probs.{number}"]
    support = token_probabilities(logits, history, params) > 0
    if int((golden > 0).sum()) <= CANDIDATES:
        assert torch.equal(support, golden > 0)
    drawn = check_draws(logits, params, history, draws=5)
    assert (golden[list(drawn)] > 0).all()


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(),
        SamplingParams(1.0, top_k=1),
        SamplingParams(3.0, top_k=5),
        SamplingParams(1.5, top_k=12, top_p=0.8),
        SamplingParams(1.5, top_k=12, top_p=0.05),
        SamplingParams(1.5, top_k=12, min_p=0.3),
        SamplingParams(1.5, top_k=12, min_p=1.0),
        SamplingParams(1.5, top_k=12, top_p=0.9, min_p=0.2, repetition_penalty=1.3),
        SamplingParams(0.8, top_k=40, top_p=0.95, repetition_penalty=0.7),
        SamplingParams(1e-20, top_k=3),
    ],
    ids=lambda params: "-".join(
        map(str, (params.temperature, params.top_k, params.top_p, params.min_p))
    ),
)
def test_draws_are_those_of_the_runtime(params: SamplingParams) -> None:
    vocab = 50 if params.top_k == 0 else 101
    logits, history = randn(vocab) * 2, torch.tensor([3, 3, 49, 17])
    logits[49] = logits.max() + 0.5
    drawn = check_draws(logits, params, history, draws=40 if params.top_k == 5 else 12)
    support = (token_probabilities(logits, history, params) > 0).nonzero().flatten().tolist()
    assert drawn <= set(support)
    if params.top_k == 5:
        assert drawn == set(support)


def test_more_candidates_than_a_block_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "CANDIDATES", 128)
    check_draws(randn(101), SamplingParams(2.0, top_k=101), NONE, draws=5)


def test_of_equal_logits_the_lower_ids_are_drawn() -> None:
    logits = torch.zeros(50)
    state = state_of(SamplingParams(top_k=3), 50, NONE, 40)
    assert set(sample(logits.repeat(40, 1), state).tolist()) == {0, 1, 2}
    logits[[40, 7]] = 1.0  # of different blocks
    state = state_of(SamplingParams(0.0), 50, NONE, 1)
    assert sample(logits.unsqueeze(0), state).tolist() == [7]


@pytest.mark.parametrize("vocab", [1, 31, 50, 101, 300])
@pytest.mark.parametrize("penalty", [1.0, 1.4, 0.6])
def test_greedy_choices_after_the_penalty(vocab: int, penalty: float) -> None:
    rows, params = 4, SamplingParams(0.0, repetition_penalty=penalty)
    logits = guarded(torch.stack([randn(vocab, seed=row) for row in range(rows)]))
    logits[3] = -logits[3].abs() - 1  # the penalty multiplies
    state = state_of(params, vocab, NONE, rows)
    history: list[list[int]] = [[] for _ in range(rows)]
    for step in range(3):
        expected = [
            choose_token(row, torch.tensor(past, dtype=torch.int64), params, torch.Generator())
            for row, past in zip(logits, history, strict=True)
        ]
        assert sample(logits, state).tolist() == expected
        for past, token in zip(history, expected, strict=True):
            past.append(token)
        assert [row.nonzero().flatten().tolist() for row in state.seen] == [
            sorted(set(past)) for past in history
        ]
        assert state.steps.tolist() == [row % 7 + step + 1 for row in range(rows)]


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning:triton.runtime.interpreter")
def test_an_extreme_penalty_still_chooses() -> None:
    params = SamplingParams(0.0, repetition_penalty=1e-30)
    logits, history = torch.tensor([[1.0, 3.0, -2e20]]), torch.tensor([0, 2])
    state = state_of(params, 3, history, 1)
    assert sample(logits, state).tolist() == [0]


@pytest.mark.parametrize("value", [NAN, float("inf"), float("-inf")])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("place", [0, 40, 49])
def test_a_logit_that_is_no_number_gives_no_token(
    value: float, temperature: float, place: int
) -> None:
    logits = randn(50).repeat(3, 1)
    logits[1, place] = value
    state = state_of(SamplingParams(temperature, top_k=4), 50, torch.tensor([place, 5]), 3)
    seen, steps = state.seen.clone(), state.steps.clone()
    tokens = sample(logits, state)
    assert (tokens >= 0).tolist() == [True, False, True]
    assert tokens[1] == -1
    assert torch.equal(state.seen[1], seen[1])
    assert torch.equal(state.steps, steps + 1)


def test_sequences_have_settings_of_their_own() -> None:
    logits = randn(3, 50) * 2
    state = SamplerState.empty(3, 50, CPU)
    state.settings[1] = torch.tensor([1.0, 1.0, 1.0, 0.0])
    state.top_k[1] = 2
    state.settings[2, 1] = 5.0
    best = logits.argmax(1)
    logits[2] += 20  # far above zero, so that the penalty moves the likeliest one down
    state.seen[2, best[2]] = 1
    allowed = set(logits[1].topk(2).indices.tolist())
    for _ in range(4):
        tokens = sample(logits, state).tolist()
        assert tokens[0] == best[0]
        assert tokens[1] in allowed
    second = logits[2].topk(5).indices.tolist()[1:]
    assert tokens[2] in second


def test_logits_with_gaps_are_refused() -> None:
    with pytest.raises(ValueError, match=r"call \.contiguous\(\) first"):
        sample(torch.zeros(2, 100)[:, ::2], SamplerState.empty(2, 50, CPU))
