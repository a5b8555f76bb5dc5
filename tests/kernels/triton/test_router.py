"""The router, in one launch for few tokens and after torch's product for many."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tests.kernels.triton.interpreter import (
    HALF_AND_FULL,
    LIMITS,
    guarded,
    name_of,
    randn,
    relative_error,
)
from xverse_kernels import reference
from xverse_kernels.triton.experts import route
from xverse_kernels.triton.launch import Workspace

EPS = 1e-2


@pytest.mark.parametrize("dtype", HALF_AND_FULL, ids=name_of)
@pytest.mark.parametrize(
    ("tokens", "hidden", "experts", "top_k", "shared"),
    [
        (1, 160, 16, 6, 2),
        (2, 80, 11, 1, 0),
        (3, 96, 9, 8, 1),
        (3, 32, 5, 5, 3),
        (1, 64, 8, 8, 0),
        (1, 32, 1, 1, 1),
        (17, 160, 16, 6, 2),
        (17, 80, 7, 7, 0),
        (40, 96, 9, 1, 1),
    ],
)
def test_choices_weights_and_logits(
    dtype: torch.dtype,
    tokens: int,
    hidden: int,
    experts: int,
    top_k: int,
    shared: int,
    workspace: Workspace,
) -> None:
    x = guarded((randn(tokens, hidden) * 3).to(dtype))
    norm, router = guarded(randn(hidden, seed=1).to(dtype)), guarded(randn(experts, hidden, seed=2))
    for _ in range(2):  # the second launch needs the counters of the first at zero
        routed = route(x, norm, EPS, router, top_k, shared, workspace)
        assert not workspace.counters.any()
    normed = reference.rms_norm(x.float(), norm.float(), EPS)
    assert routed.normed.dtype == routed.weights.dtype == dtype
    assert relative_error(routed.normed, normed) < LIMITS[dtype]
    expected = reference.route(routed.normed, router, top_k)
    assert relative_error(routed.logits, expected.logits) < 2e-6
    assert routed.expert_ids.dtype == torch.int32
    assert torch.equal(routed.expert_ids[:, :top_k].long(), expected.expert_ids)
    assert relative_error(routed.weights[:, :top_k], expected.weights) < LIMITS[dtype]
    shared_ids = torch.arange(experts, experts + shared).expand(tokens, shared)
    assert torch.equal(routed.expert_ids[:, top_k:].long(), shared_ids)
    assert torch.equal(routed.weights[:, top_k:], torch.ones(tokens, shared, dtype=dtype))


@pytest.mark.parametrize("tokens", [2, 17])
def test_equal_experts_are_taken_from_the_lowest(tokens: int, workspace: Workspace) -> None:
    # sums of small integers are exact in any order, so that equal rows give equal logits
    x, norm, one = randn(tokens, 32).sign(), torch.ones(32), randn(32, seed=1).sign()
    routed = route(x, norm, 0.0, one.repeat(7, 1), 3, 0, workspace)
    assert routed.expert_ids.tolist() == [[0, 1, 2]] * tokens
    assert torch.allclose(routed.weights, torch.full((tokens, 3), 1 / 3))
    twins = randn(4, 32, seed=2).sign()[[0, 1, 2, 3, 0, 1, 2, 3]]
    routed = route(x, norm, 0.0, twins, 8, 0, workspace)
    order = routed.logits.sort(dim=1, descending=True, stable=True).indices
    assert torch.equal(routed.expert_ids.long(), order)


def test_bf16_is_only_how_tokens_are_stored(workspace: Workspace) -> None:
    x, norm = guarded(randn(3, 96).bfloat16()), guarded(randn(96, seed=1).bfloat16())
    router = randn(9, 96, seed=2)
    routed = route(x, norm, EPS, router, 4, 1, workspace)
    normed = reference.rms_norm(x.float(), norm.float(), EPS)
    assert relative_error(routed.normed, normed) < LIMITS[torch.bfloat16]
    # the logits are of the normed state before it was cut
    assert relative_error(routed.logits, F.linear(routed.normed.float(), router)) < 1e-2
    assert torch.equal(routed.expert_ids[:, :4].long(), routed.logits.topk(4).indices)
    likely = routed.logits.softmax(-1).topk(4).values
    assert relative_error(routed.weights[:, :4], likely / likely.sum(-1, keepdim=True)) < 1e-2


@pytest.mark.parametrize("tokens", [1, 17])
def test_far_apart_logits_stay_finite(tokens: int, workspace: Workspace) -> None:
    x, router = randn(tokens, 32), randn(6, 32, seed=1) * 1e3
    routed = route(x, torch.ones(32), EPS, router, 6, 0, workspace)
    expected = reference.route(routed.normed, router, 6)
    assert relative_error(routed.weights, expected.weights) < 1e-5
    # also those whose probability is nothing are chosen once each
    assert routed.expert_ids.sort(1).values.tolist() == [list(range(6))] * tokens


@pytest.mark.parametrize("which", range(3))
def test_rows_with_gaps_are_refused(which: int, workspace: Workspace) -> None:
    tensors = [torch.zeros(2, 32), torch.zeros(32), torch.zeros(4, 32)]
    shape = tensors[which].shape
    tensors[which] = torch.zeros(*shape[:-1], 64)[..., ::2]
    x, norm, router = tensors
    with pytest.raises(ValueError, match=r"call \.contiguous\(\) first"):
        route(x, norm, EPS, router, 2, 0, workspace)
