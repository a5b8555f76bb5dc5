"""Experts for many tokens: sorting pairs, and matrix products over them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.kernels.triton.interpreter import (
    HALF_AND_FULL,
    LIMITS,
    POISON_INT,
    guarded,
    name_of,
    pack_experts,
    randn,
    relative_error,
    route_randomly,
    routed_to,
    with_gaps,
)
from tests.kernels.triton.test_experts import FORMS, TWO_FORMS, expected_sum
from xverse_kernels.packing import FP16, INT4, INT8, NIBBLE_COLUMN, ExpertBlocks, WeightFormat
from xverse_kernels.triton import experts as launchers
from xverse_kernels.triton.experts import experts_grouped, plane_order
from xverse_kernels.triton.products import experts_by_torch
from xverse_kernels.triton.tiles import GemmTile

TILE = GemmTile(16, 64, 32, 1, 1)


@pytest.mark.parametrize("chunk", [8, 64])
@pytest.mark.parametrize("missing", [[], [2], [0, 4], [0, 1, 2, 3, 4]])
def test_pairs_are_sorted_by_expert_and_stay_in_order(chunk: int, missing: list[int]) -> None:
    ids = torch.randint(5, (23,), generator=torch.Generator().manual_seed(1), dtype=torch.int32)
    ids[ids == 3] = 1  # nobody's expert
    table = torch.tensor([7, 3, 0, 1, 2], dtype=torch.int32)
    table[missing] = -1
    order = torch.full((23,), POISON_INT, dtype=torch.int32)
    counts, starts = (torch.full((5,), POISON_INT, dtype=torch.int32) for _ in range(2))
    launchers._sort_pairs(
        (5,), (guarded(ids), guarded(table), order, counts, starts, 23), {"CHUNK": chunk}
    )
    there = [pair for pair in range(23) if table[ids[pair]] >= 0]
    expected = sorted(there, key=lambda pair: int(ids[pair]))
    assert order.tolist() == expected + [POISON_INT] * (23 - len(there))
    assert counts.tolist() == [sum(int(ids[pair]) == e for pair in there) for e in range(5)]
    assert starts.tolist() == [sum(int(ids[pair]) < e for pair in there) for e in range(5)]


@pytest.mark.parametrize("form", FORMS, ids=name_of)
@pytest.mark.parametrize("dtype", HALF_AND_FULL, ids=name_of)
@pytest.mark.parametrize(("hidden", "width"), [(96, 32), (160, 96)])
def test_formats_dtypes_and_widths(
    form: WeightFormat, dtype: torch.dtype, hidden: int, width: int
) -> None:
    experts = pack_experts(4, hidden, width, form)
    routed = route_randomly(7, hidden, 4, 2, dtype)
    residual = guarded(randn(7, hidden, seed=8).to(dtype))
    actual = experts_grouped(routed, experts, residual, tile=TILE)
    assert actual.dtype == dtype
    # h, and what each expert adds, are stored in the dtype of the activations
    assert relative_error(actual, expected_sum(routed, experts, residual)) < 2 * LIMITS[dtype]


@pytest.mark.parametrize("form", TWO_FORMS, ids=name_of)
@pytest.mark.parametrize(
    ("tokens", "experts", "slots"),
    [(1, 8, 1), (2, 8, 6), (3, 9, 8), (3, 5, 5), (17, 5, 2), (17, 1, 1), (40, 6, 6)],
)
def test_tokens_and_slots(form: WeightFormat, tokens: int, experts: int, slots: int) -> None:
    blocks = pack_experts(experts, 64, 32, form)
    routed = route_randomly(tokens, 64, experts, slots)
    residual = guarded(randn(tokens, 64, seed=8))
    actual = experts_grouped(routed, blocks, residual, tile=TILE)
    assert relative_error(actual, expected_sum(routed, blocks, residual)) < 3e-6


@pytest.mark.parametrize("form", TWO_FORMS, ids=name_of)
@pytest.mark.parametrize("tokens", [16, 17, 50])
@pytest.mark.parametrize("expert", [0, 3])
def test_all_tokens_on_one_expert(form: WeightFormat, tokens: int, expert: int) -> None:
    experts = pack_experts(4, 32, 32, form)
    routed = routed_to(torch.full((tokens, 1), expert), 32)
    residual = guarded(randn(tokens, 32, seed=8))
    actual = experts_grouped(routed, experts, residual, tile=TILE)
    assert relative_error(actual, expected_sum(routed, experts, residual)) < 3e-6


@pytest.mark.parametrize("form", FORMS, ids=name_of)
def test_experts_without_a_block_add_nothing_and_are_not_read(form: WeightFormat) -> None:
    experts = pack_experts(5, 96, 32, form, table=[-1, 3, -1, 1, 4])
    routed, residual = route_randomly(19, 96, 5, 3), guarded(randn(19, 96, seed=8))
    actual = experts_grouped(routed, experts, residual, tile=TILE)
    assert relative_error(actual, expected_sum(routed, experts, residual)) < 3e-6


@pytest.mark.parametrize("form", TWO_FORMS, ids=name_of)
def test_without_any_block_only_the_residual_is_left(form: WeightFormat) -> None:
    experts = pack_experts(4, 32, 32, form, table=[-1] * 4, blocks=1)
    routed, residual = route_randomly(17, 32, 4, 3), guarded(randn(17, 32, seed=8))
    assert torch.equal(experts_grouped(routed, experts, residual), residual)


@pytest.mark.parametrize("form", [FP16, INT8, INT4], ids=name_of)
@pytest.mark.parametrize(
    "tile", [GemmTile(32, 128, 64, 1, 1), GemmTile(64, 32, 64, 1, 1), None], ids=str
)
def test_other_tiles(form: WeightFormat, tile: GemmTile | None) -> None:
    experts = pack_experts(3, 224, 96, form)  # three and a half chunks, one and a half
    routed, residual = route_randomly(35, 224, 3, 2), guarded(randn(35, 224, seed=8))
    actual = experts_grouped(routed, experts, residual, tile=tile)
    assert relative_error(actual, expected_sum(routed, experts, residual)) < 3e-6


def test_sums_over_several_stretches_of_pairs_and_columns(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(launchers, "SORT_CHUNK", 16)
    monkeypatch.setattr(launchers, "COMBINE_BLOCK", 64)
    experts = pack_experts(5, 160, 32, INT8, table=[0, 1, -1, 3, 2])
    routed, residual = route_randomly(17, 160, 5, 4), guarded(randn(17, 160, seed=8))
    actual = experts_grouped(routed, experts, residual, tile=TILE)
    assert relative_error(actual, expected_sum(routed, experts, residual)) < 3e-6


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("columns", [64, 96, 256])
def test_plane_order(bits: int, columns: int) -> None:
    x = randn(2, columns)
    actual = plane_order(x, bits)
    per_word = 32 // bits
    chunk = 16 * per_word
    expected = torch.zeros(2, -(-columns // chunk) * chunk)
    for column in range(columns):
        word, inner = divmod(column, per_word)
        plane = NIBBLE_COLUMN.index(inner) if bits == 4 else inner
        expected[:, word // 16 * chunk + plane * 16 + word % 16] = x[:, column]
    assert torch.equal(actual, expected)


@pytest.mark.parametrize(
    "which", ["normed", "expert_ids", "weights", "table", "blocks", "residual"]
)
@pytest.mark.parametrize("multiply", [experts_grouped, experts_by_torch])
def test_rows_with_gaps_are_refused(which: str, multiply: Callable[..., Tensor]) -> None:
    experts, residual = pack_experts(2, 32, 32, INT8), torch.zeros(2, 32)
    routed = routed_to(torch.tensor([[0], [1]]), 32)
    gaps: Tensor = torch.zeros(2, 64)[:, ::2]
    if which == "normed":
        routed = routed._replace(normed=gaps)
    elif which in ("expert_ids", "weights"):
        routed = routed._replace(**{which: with_gaps(getattr(routed, which))})
    elif which == "table":
        experts = experts.like(experts.blocks, with_gaps(experts.table))
    elif which == "blocks":
        wide = torch.zeros(4, experts.layout.block_bytes, dtype=torch.uint8)
        experts = ExpertBlocks(wide[::2], experts.layout, torch.float32)
    else:
        residual = gaps
    with pytest.raises(ValueError, match=r"call \.contiguous\(\) first"):
        multiply(routed, experts, residual)
