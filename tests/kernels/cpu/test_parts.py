"""Every slot's share apart; and experts some of which are not here, with every instruction set."""

from __future__ import annotations

import random
from functools import cache

import pytest
import torch
from torch import Tensor

from tests.kernels.cpu.support import (
    FORMS,
    NAN,
    ROUNDED_LIMIT,
    expert_blocks,
    five_experts,
    guarded,
    name_of,
    randn,
    relative_error,
    rounded_sum,
    route_randomly,
)
from tests.kernels.cpu.test_splits import check, splits
from tests.kernels.shares import shared_out
from xverse_kernels import reference
from xverse_kernels.cpu.backend import CpuBackend
from xverse_kernels.cpu.plain import MOST_ALONE
from xverse_kernels.packing import BF16, FP16, INT4, INT8, ExpertBlocks, WeightFormat
from xverse_kernels.reference_backend import ReferenceBackend
from xverse_kernels.types import RoutedTokens

PLAIN = ReferenceBackend()
forms = pytest.mark.parametrize("form", FORMS, ids=name_of)


def parts_of(kernels: CpuBackend, routed: RoutedTokens, experts: ExpertBlocks) -> Tensor:
    out = guarded(torch.full((*routed.expert_ids.shape, experts.layout.hidden), NAN))
    kernels.expert_parts(routed, experts, out)
    return out


def plain_parts(routed: RoutedTokens, experts: ExpertBlocks) -> Tensor:
    return reference.expert_parts(routed.normed, routed.weights, routed.expert_ids, experts)


def only(experts: ExpertBlocks, present: list[int]) -> ExpertBlocks:
    """A pool of these experts alone, in another order; the others have no block."""
    table = torch.full((len(experts),), -1, dtype=torch.int32)
    for block, expert in enumerate(present):
        table[expert] = block
    blocks = experts.blocks[experts.table[present]]
    return ExpertBlocks(blocks.clone(), experts.layout, torch.float32, table)


@cache
def expected_shares(
    form: WeightFormat, hidden: int, width: int, tokens: int
) -> tuple[RoutedTokens, list[Tensor]]:
    """Tokens, and the share of each slot: once for all instructions."""
    experts, routed = five_experts(hidden, width, form), route_randomly(tokens, hidden, 5, 3)
    slots = [
        routed._replace(weights=routed.weights[:, [slot]], expert_ids=routed.expert_ids[:, [slot]])
        for slot in range(3)
    ]
    return routed, [rounded_sum(one, experts) for one in slots]


@forms
@pytest.mark.parametrize(("hidden", "width"), [(96, 160), (256, 1760), (32, 32)])
@pytest.mark.parametrize("tokens", [1, 2, 9])
def test_shares(
    kernels: CpuBackend, form: WeightFormat, hidden: int, width: int, tokens: int
) -> None:
    routed, shares = expected_shares(form, hidden, width, tokens)
    actual = parts_of(kernels, routed, five_experts(hidden, width, form))
    for slot, share in enumerate(shares):
        assert relative_error(actual[:, slot], share) < ROUNDED_LIMIT


@forms
def test_a_share_depends_on_nothing_else(kernels: CpuBackend, form: WeightFormat) -> None:
    """Not on what is computed beside it, where its block lies, the threads or the split."""
    whole = expert_blocks(9, 160, 96, form)
    routed = route_randomly(11, 160, 9, 5)
    together = parts_of(kernels, routed, whole)
    rng = random.Random(1)
    for round_ in range(8):
        kernels.set_threads(1 + round_ % 3)
        some = rng.sample(range(9), k=rng.randrange(10))
        others = [expert for expert in range(9) if expert not in some]
        mine, its = (parts_of(kernels, routed, only(whole, one)) for one in (some, others))
        assert torch.equal(mine + its, together)
        there = torch.isin(routed.expert_ids, torch.tensor(some, dtype=torch.int64))
        assert not mine[~there].any()
        assert not its[there].any()


@forms
def test_split_of_tokens(kernels: CpuBackend, form: WeightFormat) -> None:
    experts = only(expert_blocks(7, 160, 96, form), [6, 1, 0, 3])
    routed = route_randomly(37, 160, 7, 4)
    check(
        kernels,
        lambda kernels, rows: parts_of(
            kernels, RoutedTokens(*(part[rows] for part in routed)), experts
        ),
    )


def test_a_pool_larger_than_the_experts(kernels: CpuBackend) -> None:
    """Slots of a cache: any block may be any expert's; those of nobody are NaN."""
    experts = expert_blocks(3, 64, 96, INT4, table=[11, -1, 4])
    routed = route_randomly(4, 64, 3, 2)
    actual = parts_of(kernels, routed, experts)
    assert not actual[routed.expert_ids == 1].any()
    assert relative_error(actual, plain_parts(routed, experts)) < 0.03


@forms
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=name_of)
def test_activations_of_a_gpu(kernels: CpuBackend, form: WeightFormat, dtype: torch.dtype) -> None:
    """They are taken as the fp32 numbers that they are."""
    experts, routed = expert_blocks(4, 64, 96, form), route_randomly(3, 64, 4, 2)
    half = routed._replace(normed=routed.normed.to(dtype), weights=routed.weights.to(dtype))
    full = half._replace(normed=half.normed.float(), weights=half.weights.float())
    assert torch.equal(parts_of(kernels, half, experts), parts_of(kernels, full, experts))


@pytest.mark.parametrize(("form", "width"), [(FP16, 64), (BF16, 48)], ids=name_of)
def test_other_blocks_fall_back(fastest: CpuBackend, form: WeightFormat, width: int) -> None:
    experts = only(expert_blocks(6, 64, width, form), [2, 0, 5, 3])
    routed = route_randomly(MOST_ALONE, 64, 6, 3)
    actual = parts_of(fastest, routed, experts)
    assert torch.equal(actual, plain_parts(routed, experts))
    for split in splits(MOST_ALONE):
        pieces = [
            parts_of(fastest, RoutedTokens(*(part[rows] for part in routed)), experts)
            for rows in split
        ]
        assert torch.equal(torch.cat(pieces), actual)


@pytest.mark.parametrize("wrong", [4, -1, 2**40])
def test_an_id_that_is_no_experts_is_refused(kernels: CpuBackend, wrong: int) -> None:
    experts, routed = expert_blocks(4, 64, 96, INT4), route_randomly(2, 64, 4, 2)
    routed.expert_ids[1, 1] = wrong
    with pytest.raises(LookupError, match="no block here"):
        parts_of(kernels, routed, experts)


@pytest.mark.parametrize("wrong", ["gaps", "shape", "dtype"])
def test_parts_of_another_kind_are_refused(fastest: CpuBackend, wrong: str) -> None:
    experts, routed = expert_blocks(4, 64, 96, INT4), route_randomly(2, 64, 4, 2)
    out = {
        "gaps": torch.zeros(2, 2, 128)[..., ::2],
        "shape": torch.zeros(2, 64),
        "dtype": torch.zeros(2, 2, 64, dtype=torch.bfloat16),
    }[wrong]
    with pytest.raises(ValueError, match=r"contiguous fp32 tensor of the shape \(2, 2, 64\)"):
        fastest.expert_parts(routed, experts, out)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=name_of)
@pytest.mark.parametrize("tables", [0, 1, 2])
def test_adding_up(fastest: CpuBackend, dtype: torch.dtype, tables: int) -> None:
    """Slot after slot in fp32, read where its expert was computed, and rounded once."""
    residual, shares = guarded((randn(5, 96) * 3).to(dtype)), randn(5, 4, 96, seed=2)
    ids, here, rest = shared_out(shares, tables)
    expected = residual.float()
    for slot in range(4):
        expected = expected + shares[:, slot]
    actual = fastest.add_parts(residual, ids, here, rest)
    assert actual.dtype == dtype
    assert torch.equal(actual, expected.to(dtype))


def test_small_copies(fastest: CpuBackend) -> None:
    ids, weights = torch.arange(8), randn(2, 4).bfloat16()
    targets = (torch.zeros(8, dtype=torch.int32), torch.zeros(2, 4))
    fastest.copy_small(list(zip((ids, weights), targets, strict=True)))
    assert targets[0].tolist() == list(range(8))
    assert torch.equal(targets[1], weights.float())


@forms
@pytest.mark.parametrize("tokens", [1, 30])
def test_groups_of_experts_one_after_the_other(
    kernels: CpuBackend, form: WeightFormat, tokens: int
) -> None:
    whole, routed = expert_blocks(7, 96, 64, form), route_randomly(tokens, 96, 7, 3)
    total = residual = randn(tokens, 96, seed=3)
    for group in ([3, 0], [5], [1, 2, 6, 4]):
        total = kernels.experts(routed, only(whole, group), total)
    assert relative_error(total - residual, rounded_sum(routed, whole)) < ROUNDED_LIMIT
    nothing = kernels.experts(routed, only(whole, []), residual)
    assert torch.equal(nothing, residual)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=name_of)
@pytest.mark.parametrize("tokens", [2, 30])
def test_groups_of_half_activations_in_an_fp32_residual(
    fastest: CpuBackend, backend: str, dtype: torch.dtype, tokens: int
) -> None:
    kernels = fastest if backend == "cpu" else PLAIN
    whole = expert_blocks(7, 96, 64, INT8, dtype=dtype)
    routed = route_randomly(tokens, 96, 7, 3)
    half = routed._replace(normed=routed.normed.to(dtype), weights=routed.weights.to(dtype))
    total = residual = randn(tokens, 96, seed=3)
    for group in ([3, 0], [5], [1, 2, 6, 4]):
        of_group = only(whole, group)
        some = ExpertBlocks(of_group.blocks, whole.layout, dtype, of_group.table)
        total = kernels.experts(half, some, total)
        assert total.dtype == torch.float32
    step = 2**-7 if dtype == torch.bfloat16 else 2**-10
    exact = ExpertBlocks(whole.blocks, whole.layout, torch.float64, whole.table)
    added = reference.moe(half.normed.double(), half.weights.double(), half.expert_ids, exact)
    assert relative_error(total - residual, added) < step


@forms
def test_nan_stays_in_its_share(kernels: CpuBackend, form: WeightFormat) -> None:
    experts, routed = expert_blocks(5, 96, 64, form), route_randomly(4, 96, 5, 3)
    good = parts_of(kernels, routed, experts)
    routed.weights[2, 1] = NAN
    bad = parts_of(kernels, routed, experts)
    assert bad[2, 1].isnan().all()
    bad[2, 1] = good[2, 1]
    assert torch.equal(bad, good)
