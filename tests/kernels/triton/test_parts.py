"""Every slot's share apart, and adding the shares up in one order."""

from __future__ import annotations

import pytest
import torch

from tests.kernels.shares import shared_out
from tests.kernels.triton.interpreter import (
    CPU,
    FLOATS,
    LIMITS,
    guarded,
    name_of,
    pack_experts,
    poison_of,
    randn,
    relative_error,
    route_randomly,
    routed_to,
)
from tests.kernels.triton.test_experts import FORMS, QUICK, expected_sum
from xverse_kernels import reference
from xverse_kernels.backend import KernelBackend, select_backend
from xverse_kernels.packing import FP16, INT4, INT8, ExpertBlocks, WeightFormat
from xverse_kernels.triton import parts as launchers
from xverse_kernels.triton.experts import gate_up_each
from xverse_kernels.triton.parts import add_parts, down_parts
from xverse_kernels.triton.tiles import experts_each_tokens
from xverse_kernels.types import Parts, RoutedTokens


@pytest.fixture
def kernels() -> KernelBackend:
    return select_backend("triton", CPU)


def poisoned_parts(routed: RoutedTokens) -> torch.Tensor:
    shape = (*routed.expert_ids.shape, routed.normed.shape[1])
    return guarded(torch.full(shape, poison_of(torch.float32)))


def compute(routed: RoutedTokens, experts: ExpertBlocks) -> torch.Tensor:
    """Both kernels, in tiles that take few programs."""
    gate_up, down = QUICK[experts.layout.form.bits]
    out = poisoned_parts(routed)
    down_parts(gate_up_each(routed, experts, tile=gate_up), routed, experts, out, tile=down)
    return out


def expected_parts(routed: RoutedTokens, experts: ExpertBlocks) -> torch.Tensor:
    """The reference in fp32."""
    return reference.expert_parts(
        routed.normed.float(), routed.weights.float(), routed.expert_ids.long(), experts
    )


@pytest.mark.parametrize("form", FORMS, ids=name_of)
@pytest.mark.parametrize("dtype", FLOATS, ids=name_of)
def test_formats_and_dtypes(form: WeightFormat, dtype: torch.dtype) -> None:
    experts = pack_experts(4, 96, 32, form)  # ends in half a chunk
    routed = route_randomly(2, 96, 4, 2, dtype)
    actual = compute(routed, experts)
    # h lies between the two kernels in the dtype of the activations
    assert relative_error(actual, expected_parts(routed, experts)) < 1.5 * LIMITS[dtype]


@pytest.mark.parametrize("form", [FP16, INT8, INT4], ids=name_of)
@pytest.mark.parametrize(("hidden", "width"), [(32, 32), (64, 96), (160, 64)])
def test_tiles_of_the_table_at_awkward_widths(
    kernels: KernelBackend, form: WeightFormat, hidden: int, width: int
) -> None:
    experts = pack_experts(2, hidden, width, form)
    routed = routed_to(torch.tensor([[1, 0]]), hidden)
    out = poisoned_parts(routed)
    kernels.expert_parts(routed, experts, out)
    assert relative_error(out, expected_parts(routed, experts)) < 3e-6


@pytest.mark.parametrize("form", FORMS, ids=name_of)
def test_slots_without_a_block_are_zero_and_not_read(form: WeightFormat) -> None:
    # Blocks 0 and 2 of the pool, and those around it, are NaN.
    experts = pack_experts(5, 32, 32, form, table=[-1, 3, -1, 1, 4])
    ids = torch.tensor([[0, 1, 4], [3, 2, 0], [2, 0, 4]])
    routed = routed_to(ids, 32)._replace(weights=guarded(randn(3, 3, seed=5).softmax(-1)))
    actual = compute(routed, experts)
    there = experts.table[ids] >= 0
    assert not actual[~there].any()
    assert actual[there].any(-1).all()
    assert relative_error(actual, expected_parts(routed, experts)) < 3e-6


def test_without_any_block_there_are_zeros_alone() -> None:
    experts = pack_experts(4, 32, 32, INT4, table=[-1] * 4, blocks=1)
    assert not compute(route_randomly(2, 32, 4, 3), experts).any()


@pytest.mark.parametrize("form", [FP16, INT4], ids=name_of)
def test_a_share_depends_on_nothing_else(form: WeightFormat) -> None:
    """Not on the slots computed beside it, nor on the tokens of the call: bit for bit."""
    whole = pack_experts(6, 32, 32, form)
    routed = route_randomly(3, 32, 6, 4)
    together = compute(routed, whole)
    some = ExpertBlocks(whole.blocks, whole.layout, torch.float32, whole.table.clone())
    some.table[[0, 2, 5]] = -1
    others = ExpertBlocks(whole.blocks, whole.layout, torch.float32, whole.table.clone())
    others.table[[1, 3, 4]] = -1
    mine, its = compute(routed, some), compute(routed, others)
    assert torch.equal(mine + its, together)
    assert not (mine.bool() & its.bool()).any()
    alone = [
        compute(RoutedTokens(*(part[row : row + 1] for part in routed)), whole) for row in range(3)
    ]
    assert torch.equal(torch.cat(alone), together)


def test_more_tokens_than_experts_takes_pair_by_pair(kernels: KernelBackend) -> None:
    tokens = experts_each_tokens(4) + 1
    experts = pack_experts(3, 32, 32, INT4)
    routed = route_randomly(tokens, 32, 3, 1)
    out = poisoned_parts(routed)
    kernels.expert_parts(routed, experts, out)
    assert relative_error(out, expected_parts(routed, experts)) < 3e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=name_of)
@pytest.mark.parametrize("tables", [0, 1, 2])
@pytest.mark.parametrize("hidden", [96, 160, 288])
def test_adding_up(kernels: KernelBackend, dtype: torch.dtype, tables: int, hidden: int) -> None:
    """Slots are read where their experts were computed, and what is read nowhere is NaN."""
    residual, shares = guarded(randn(3, hidden).to(dtype) * 3), randn(3, 5, hidden, seed=2)
    ids, here, rest = shared_out(shares, tables)
    expected = residual.float()
    for slot in range(5):
        expected = expected + shares[:, slot]
    actual = kernels.add_parts(residual, ids, here, rest)
    assert torch.equal(actual, expected.to(dtype))
    assert torch.equal(actual, reference.add_parts(residual, ids, here, rest))


def test_a_slot_is_read_from_the_first_table_that_has_it(kernels: KernelBackend) -> None:
    ids = torch.tensor([[2, 0, 1]], dtype=torch.int32)
    values = [torch.full((1, 3, 32), scale) for scale in (1.0, 10.0, 100.0)]
    tables = [torch.tensor(one, dtype=torch.int32) for one in ([-1, 7, -1], [-1, 0, 0])]
    here = [Parts(*one) for one in zip(values, tables, strict=False)]
    added = kernels.add_parts(torch.zeros(1, 32), ids, here, values[2])
    assert torch.equal(added, torch.full((1, 32), 10.0 + 100.0 + 1.0))


def test_bf16_residuals_come_out_as_bf16(kernels: KernelBackend) -> None:
    residual, parts = guarded(randn(2, 64).bfloat16()), guarded(randn(2, 3, 64, seed=1))
    ids = torch.zeros(2, 3, dtype=torch.int32)
    actual = kernels.add_parts(residual, ids, [], parts)
    assert actual.dtype == torch.bfloat16  # the interpreter cuts where a GPU rounds
    assert relative_error(actual, residual.float() + parts.sum(1)) < LIMITS[torch.bfloat16]


COPIED = [
    (torch.int32, torch.int32, (1, 66)),
    (torch.bfloat16, torch.float32, (3, 8)),
    (torch.float32, torch.float32, (3, 64)),
    (torch.float16, torch.float32, (3, 300)),  # more than a program copies
    (torch.int64, torch.int32, (3, 8)),
]


@pytest.mark.parametrize("count", range(1, len(COPIED) + 1))
def test_small_copies(kernels: KernelBackend, count: int) -> None:
    pairs, expected = [], []
    for source, target, shape in COPIED[-count:]:
        values = (randn(*shape) * 100).to(source)
        pairs.append((guarded(values), guarded(torch.full(shape, -1, dtype=target))))
        expected.append(values.to(target))
    kernels.copy_small(pairs)
    for (_, copied), values in zip(pairs, expected, strict=True):
        assert torch.equal(copied, values)


def test_small_copies_that_cannot_be(kernels: KernelBackend) -> None:
    some = torch.zeros(8)
    for pairs, message in (
        ([(some, some[:4])], "8 elements do not fill 4"),
        ([(some, some)] * 6, "5 copies at most"),
        ([(some[::2], some[:4])], r"\.contiguous\(\)"),
    ):
        with pytest.raises(ValueError, match=message):
            kernels.copy_small(pairs)


def test_shares_add_up_to_the_experts(kernels: KernelBackend) -> None:
    experts = pack_experts(5, 64, 32, INT8, table=[3, -1, 0, 1, 2])
    routed, residual = route_randomly(3, 64, 5, 3), guarded(randn(3, 64, seed=8))
    out = poisoned_parts(routed)
    kernels.expert_parts(routed, experts, out)
    zeros = torch.zeros_like(out)  # of experts without a block
    actual = kernels.add_parts(residual, routed.expert_ids, [Parts(out, experts.table)], zeros)
    assert relative_error(actual, kernels.experts(routed, experts, residual)) < 1e-6


@pytest.mark.parametrize("form", [FP16, INT8, INT4], ids=name_of)
@pytest.mark.parametrize("tokens", [3, 20])
def test_groups_of_experts_one_after_the_other(
    kernels: KernelBackend, form: WeightFormat, tokens: int
) -> None:
    """Prompts whose experts do not fit at once: an fp32 residual is handed on."""
    whole = pack_experts(6, 64, 32, form)
    routed = route_randomly(tokens, 64, 6, 3, torch.float16)
    residual = guarded(randn(tokens, 64, seed=8))
    total = residual
    for present in ([0, 3], [5], [1, 2, 4]):
        table = torch.full((6,), -1, dtype=torch.int32)
        table[present] = torch.arange(len(present), dtype=torch.int32)
        group = ExpertBlocks(whole.blocks[present].clone(), whole.layout, torch.float32, table)
        total = kernels.experts(routed, group, total)
        assert total.dtype == torch.float32
    # h, and what each expert adds to many tokens, are stored in the dtype of the activations
    added = expected_sum(routed, whole, torch.zeros(tokens, 64))
    assert relative_error(total - residual, added) < 2 * LIMITS[torch.float16]


@pytest.mark.parametrize("wrong", ["gaps", "shape", "dtype"])
def test_parts_of_another_kind_are_refused(kernels: KernelBackend, wrong: str) -> None:
    experts, routed = pack_experts(2, 32, 32, INT8), routed_to(torch.tensor([[0, 1]]), 32)
    out = {
        "gaps": torch.zeros(1, 2, 64)[..., ::2],
        "shape": torch.zeros(2, 32),
        "dtype": torch.zeros(1, 2, 32, dtype=torch.float16),
    }[wrong]
    message = r"\.contiguous\(\)" if wrong == "gaps" else "parts are fp32"
    with pytest.raises(ValueError, match=message):
        kernels.expert_parts(routed, experts, out)
    if wrong != "shape":
        with pytest.raises(ValueError, match=message):
            kernels.add_parts(torch.zeros(1, 32), routed.expert_ids, [], out)


def test_columns_beyond_a_programs_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launchers, "ADD_COLUMNS", 32)
    residual, shares = guarded(randn(2, 80)), randn(2, 3, 80, seed=1)
    parts = shared_out(shares, 1)
    assert torch.equal(add_parts(residual, *parts), reference.add_parts(residual, *parts))


def test_more_tables_than_a_kernel_takes() -> None:
    ids, here, rest = shared_out(randn(1, 2, 32), 2)
    with pytest.raises(ValueError, match="2 tables at most, not of 3"):
        add_parts(torch.zeros(1, 32), ids, [*here, here[0]], rest)
