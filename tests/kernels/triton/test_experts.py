"""Experts for few tokens: every (token, slot) pair by itself."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.kernels.triton.interpreter import (
    FLOATS,
    LIMITS,
    guarded,
    name_of,
    pack_experts,
    randn,
    relative_error,
    route_randomly,
    routed_to,
    with_gaps,
)
from xverse_kernels import reference
from xverse_kernels.packing import BF16, FORMATS, FP16, INT4, INT8, ExpertBlocks, WeightFormat
from xverse_kernels.triton.experts import down_each, gate_up_each
from xverse_kernels.triton.launch import Workspace
from xverse_kernels.triton.tiles import GemvTile
from xverse_kernels.types import RoutedTokens

FORMS = list(FORMATS.values())
TWO_FORMS = [FP16, INT4]
QUICK = {
    16: (GemvTile(16, 128, 1), GemvTile(32, 64, 1)),
    8: (GemvTile(16, 32, 1), GemvTile(16, 32, 1)),
    4: (GemvTile(16, 32, 1), GemvTile(16, 32, 1)),
}


def compute(
    routed: RoutedTokens,
    experts: ExpertBlocks,
    residual: Tensor,
    workspace: Workspace,
    splits: int = 1,
) -> Tensor:
    """Both kernels, in tiles that take few programs."""
    gate_up, down = QUICK[experts.layout.form.bits]
    h = gate_up_each(routed, experts, tile=gate_up)
    tile = GemvTile(down.rows, down.block, down.warps, splits)
    return down_each(h, routed, experts, residual, workspace, tile=tile)


def expected_sum(routed: RoutedTokens, experts: ExpertBlocks, residual: Tensor) -> Tensor:
    """The reference in fp32; experts that are not there give nothing."""
    there = experts.table[routed.expert_ids.long()] >= 0
    weights = torch.where(there, routed.weights.float(), 0.0)
    layout = experts.layout
    empty = layout.unpack(torch.zeros(layout.block_bytes, dtype=torch.uint8), torch.float32)
    dense = [experts[e] if experts.table[e] >= 0 else empty for e in range(len(experts))]
    x = routed.normed.float()
    return residual.float() + reference.moe(x, weights, routed.expert_ids.long(), dense)


@pytest.mark.parametrize("form", FORMS, ids=name_of)
@pytest.mark.parametrize("dtype", FLOATS, ids=name_of)
def test_formats_and_dtypes(form: WeightFormat, dtype: torch.dtype, workspace: Workspace) -> None:
    experts = pack_experts(4, 96, 32, form)  # ends in half a chunk
    routed = route_randomly(2, 96, 4, 2, dtype)
    residual = guarded(randn(2, 96, seed=8).to(dtype))
    actual = compute(routed, experts, residual, workspace)
    assert actual.dtype == dtype
    # h lies between the two kernels in the dtype of the activations
    assert relative_error(actual, expected_sum(routed, experts, residual)) < 1.5 * LIMITS[dtype]


@pytest.mark.parametrize("form", FORMS, ids=name_of)
def test_gate_and_up(form: WeightFormat) -> None:
    experts = pack_experts(3, 64, 32, form, table=[2, 0, 1])
    routed = route_randomly(2, 64, 3, 2)
    actual = gate_up_each(routed, experts).view(2, 2, 32)
    for token in range(2):
        for slot in range(2):
            gate, up, _ = experts[int(routed.expert_ids[token, slot])]
            x = routed.normed[token]
            expected = F.silu(F.linear(x, gate)) * F.linear(x, up)
            assert relative_error(actual[token, slot], expected) < 2e-6


@pytest.mark.parametrize("form", [FP16, INT8, INT4], ids=name_of)
@pytest.mark.parametrize(("hidden", "width"), [(32, 32), (64, 96), (160, 64)])
def test_tiles_of_the_table_at_awkward_widths(
    form: WeightFormat, hidden: int, width: int, workspace: Workspace
) -> None:
    experts = pack_experts(2, hidden, width, form)
    routed, residual = routed_to(torch.tensor([[1, 0]]), hidden), guarded(randn(1, hidden))
    h = gate_up_each(routed, experts)
    actual = down_each(h, routed, experts, residual, workspace)
    assert relative_error(actual, expected_sum(routed, experts, residual)) < 3e-6


@pytest.mark.parametrize(
    ("form", "tokens", "experts", "slots"),
    [
        (FP16, 1, 8, 1),
        (FP16, 2, 8, 6),
        (FP16, 3, 9, 8),
        (FP16, 17, 3, 1),
        (INT8, 3, 3, 1),
        (INT4, 1, 9, 6),
        (INT4, 2, 5, 5),
    ],
    ids=name_of,
)
def test_tokens_and_slots(
    form: WeightFormat, tokens: int, experts: int, slots: int, workspace: Workspace
) -> None:
    blocks = pack_experts(experts, 32, 32, form)
    routed = route_randomly(tokens, 32, experts, slots)
    residual = guarded(randn(tokens, 32, seed=8))
    actual = compute(routed, blocks, residual, workspace)
    assert relative_error(actual, expected_sum(routed, blocks, residual)) < 3e-6


def test_all_tokens_on_one_expert(workspace: Workspace) -> None:
    experts = pack_experts(3, 32, 32, INT8)
    routed, residual = routed_to(torch.full((5, 1), 2), 32), guarded(randn(5, 32, seed=8))
    actual = compute(routed, experts, residual, workspace)
    expected = residual + reference.swiglu(routed.normed, experts[2])
    assert relative_error(actual, expected) < 3e-6


@pytest.mark.parametrize("form", [BF16, INT8, INT4], ids=name_of)
@pytest.mark.parametrize("splits", [1, 2])
def test_experts_without_a_block_add_nothing_and_are_not_read(
    form: WeightFormat, splits: int, workspace: Workspace
) -> None:
    # Blocks 0 and 2 of the pool, and those around it, are NaN.
    experts = pack_experts(5, 32, 32, form, table=[-1, 3, -1, 1, 4])
    ids = torch.tensor([[0, 1, 4], [3, 2, 0], [2, 0, 4]])
    routed = routed_to(ids, 32)._replace(weights=guarded(randn(3, 3, seed=5).softmax(-1)))
    residual = guarded(randn(3, 32, seed=8))
    actual = compute(routed, experts, residual, workspace, splits)
    assert relative_error(actual, expected_sum(routed, experts, residual)) < 3e-6


@pytest.mark.parametrize("form", TWO_FORMS, ids=name_of)
def test_gate_and_up_of_experts_without_a_block_are_not_computed(form: WeightFormat) -> None:
    # zeros in front of the pool: whoever takes -1 for a block writes zeros, not what was there
    experts = pack_experts(3, 32, 32, form, table=[-1, 0, -1], filler=0)
    h = gate_up_each(routed_to(torch.tensor([[0, 1], [1, 2]]), 32), experts).view(2, 2, 32)
    assert h.isnan().all(-1).tolist() == [[True, False], [False, True]]


@pytest.mark.parametrize("form", TWO_FORMS, ids=name_of)
@pytest.mark.parametrize("splits", [1, 3])
def test_without_any_block_only_the_residual_is_left(
    form: WeightFormat, splits: int, workspace: Workspace
) -> None:
    experts = pack_experts(4, 32, 32, form, table=[-1] * 4, blocks=1)
    routed, residual = route_randomly(1, 32, 4, 3), guarded(randn(1, 32, seed=8))
    assert torch.equal(compute(routed, experts, residual, workspace, splits), residual)


@pytest.mark.parametrize("form", TWO_FORMS, ids=name_of)
@pytest.mark.parametrize("splits", [2, 3, 4])
def test_slots_split_among_programs(form: WeightFormat, splits: int, workspace: Workspace) -> None:
    experts = pack_experts(5, 32, 32, form)
    routed, residual = route_randomly(1, 32, 5, 4), guarded(randn(1, 32, seed=8))
    for _ in range(2):
        actual = compute(routed, experts, residual, workspace, splits)
        assert not workspace.counters.any()
        assert relative_error(actual, expected_sum(routed, experts, residual)) < 3e-6


@pytest.mark.parametrize(
    "which", ["normed", "expert_ids", "weights", "table", "blocks", "residual", "h"]
)
def test_rows_with_gaps_are_refused(which: str, workspace: Workspace) -> None:
    experts, residual = pack_experts(2, 32, 32, INT8), torch.zeros(2, 32)
    routed, h = routed_to(torch.tensor([[0], [1]]), 32), torch.zeros(2, 32)
    gaps = torch.zeros(2, 64)[:, ::2]
    if which == "normed":
        routed = routed._replace(normed=gaps)
    elif which in ("expert_ids", "weights"):
        routed = routed._replace(**{which: with_gaps(getattr(routed, which))})
    elif which == "table":
        experts = experts.like(experts.blocks, with_gaps(experts.table))
    elif which == "blocks":
        wide = torch.zeros(4, experts.layout.block_bytes, dtype=torch.uint8)
        experts = ExpertBlocks(wide[::2], experts.layout, torch.float32)
    elif which == "residual":
        residual = gaps
    else:
        h = gaps

    def run() -> None:
        gate_up_each(routed, experts)
        down_each(h, routed, experts, residual, workspace)

    with pytest.raises(ValueError, match=r"call \.contiguous\(\) first"):
        run()
