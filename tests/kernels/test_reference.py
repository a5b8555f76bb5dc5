"""The oracle against independent ways of computing the same thing."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from xverse_kernels import reference
from xverse_kernels.backend import BackendUnavailableError, select_backend
from xverse_kernels.packing import FORMATS, ExpertBlocks, ExpertLayout
from xverse_kernels.types import Parts, SwigluWeights


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float32)


def experts_of(count: int, hidden: int, width: int) -> list[SwigluWeights]:
    return [
        SwigluWeights(
            randn(width, hidden, seed=3 * n) / hidden**0.5,
            randn(width, hidden, seed=3 * n + 1) / hidden**0.5,
            randn(hidden, width, seed=3 * n + 2) / width**0.5,
        )
        for n in range(count)
    ]


@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (6, 1)])
@pytest.mark.parametrize(("past", "tokens"), [(0, 1), (0, 7), (5, 1), (5, 3)])
def test_attention_matches_torch(heads: tuple[int, int], past: int, tokens: int) -> None:
    query_heads, kv_heads = heads
    q = randn(tokens, query_heads, 80, seed=1)
    k, v = randn(kv_heads, past + tokens, 80, seed=2), randn(kv_heads, past + tokens, 80, seed=3)
    visible = torch.ones(tokens, past + tokens, dtype=torch.bool).tril(past)
    expected = F.scaled_dot_product_attention(
        q.transpose(0, 1), k, v, attn_mask=visible, enable_gqa=True
    )
    actual = reference.attention(q, k, v, past)
    assert torch.allclose(actual, expected.transpose(0, 1).reshape(tokens, -1), atol=1e-5)


def test_attention_ignores_what_lies_beyond_the_cache_length() -> None:
    q, storage = randn(2, 2, 16), torch.full((2, 9, 16), float("nan"))
    storage[:, :5] = randn(2, 5, 16, seed=4)
    assert reference.attention(q, storage[:, :5], storage[:, :5], past=3).isfinite().all()


def test_rope_is_a_complex_rotation() -> None:
    x, angles = randn(5, 3, 8), randn(5, 4, seed=9)
    both = torch.cat((angles, angles), dim=-1)
    rotated = torch.complex(x[..., :4], x[..., 4:]) * torch.polar(
        torch.ones(5, 1, 4), angles.unsqueeze(1)
    )
    expected = torch.cat((rotated.real, rotated.imag), dim=-1)
    assert torch.allclose(reference.rope(x, both.cos(), both.sin()), expected, atol=1e-6)


def test_rms_norm_matches_torch_and_keeps_the_dtype() -> None:
    x, weight = randn(4, 32), randn(32, seed=1)
    assert torch.allclose(
        reference.rms_norm(x, weight, 1e-6), F.rms_norm(x, (32,), weight, 1e-6), atol=1e-6
    )
    half = reference.rms_norm(x.bfloat16() * 1e4, weight.bfloat16(), 1e-6)
    assert half.dtype == torch.bfloat16
    assert half.isfinite().all()


@pytest.mark.parametrize("top_k", [1, 3, 8])
def test_route_renormalises_the_likeliest_experts(top_k: int) -> None:
    x, weight = randn(5, 32), randn(8, 32, seed=1)
    routing = reference.route(x, weight, top_k)
    probabilities = (x.double() @ weight.double().T).softmax(-1)
    for token in range(5):
        best = probabilities[token].argsort(descending=True)[:top_k]
        assert routing.expert_ids[token].tolist() == best.tolist()
        chosen = probabilities[token][best]
        expected = chosen / (chosen.sum() + 1e-6)
        assert torch.allclose(routing.weights[token].double(), expected, atol=1e-6)
    assert routing.logits.dtype == torch.float32


def test_route_computes_in_fp32_for_bf16_activations() -> None:
    x, weight = randn(3, 32).bfloat16(), randn(8, 32, seed=1)
    routing = reference.route(x, weight, 2)
    assert torch.equal(routing.logits, F.linear(x.float(), weight))
    assert routing.weights.dtype == torch.bfloat16


@pytest.mark.parametrize("tokens", [1, 2, 17])
def test_moe_is_the_weighted_sum_token_by_token(tokens: int) -> None:
    experts = experts_of(6, 32, 24)
    x = randn(tokens, 32, seed=5)
    ids = torch.stack([torch.randperm(6)[:3] for _ in range(tokens)])
    weights = randn(tokens, 3, seed=6).softmax(-1)
    expected = torch.zeros(tokens, 32)
    for token in range(tokens):
        for slot in range(3):
            gate, up, down = experts[int(ids[token, slot])]
            h = F.silu(x[token] @ gate.T) * (x[token] @ up.T)
            expected[token] += weights[token, slot] * (h @ down.T)
    assert torch.allclose(reference.moe(x, weights, ids, experts), expected, atol=1e-5)


def test_moe_with_all_tokens_on_one_expert_and_none_on_others() -> None:
    experts = experts_of(4, 32, 24)
    x, ids = randn(9, 32), torch.full((9, 1), 2)
    out = reference.moe(x, torch.ones(9, 1), ids, experts)
    assert torch.allclose(out, reference.swiglu(x, experts[2]), atol=1e-6)


def test_moe_does_not_depend_on_how_tokens_are_split() -> None:
    experts = [SwigluWeights(*(w.double() for w in one)) for one in experts_of(5, 32, 24)]
    x, weights = randn(8, 32).double(), randn(8, 2, seed=1).softmax(-1).double()
    ids = torch.stack([torch.randperm(5)[:2] for _ in range(8)])
    whole = reference.moe(x, weights, ids, experts)
    rows = [slice(i, i + 1) for i in range(8)]
    parts = [reference.moe(x[row], weights[row], ids[row], experts) for row in rows]
    assert torch.equal(whole.float(), torch.cat(parts).float())


def test_moe_can_be_abandoned_between_experts() -> None:
    calls = []

    def stop_at_second() -> None:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt

    ids = torch.tensor([[0, 1, 2]])
    with pytest.raises(KeyboardInterrupt):
        reference.moe(randn(1, 32), torch.ones(1, 3), ids, experts_of(3, 32, 24), stop_at_second)
    assert len(calls) == 2


def test_backend_is_met_or_refused() -> None:
    cpu = torch.device("cpu")
    assert select_backend("reference", cpu).name == "reference"
    with pytest.raises(BackendUnavailableError, match="no such backend"):
        select_backend("cudnn", cpu)


def packed_experts(present: list[int], count: int = 6) -> ExpertBlocks:
    """Experts of one kind in blocks of their own; those that are not present have none."""
    layout = ExpertLayout(32, 48, FORMATS["bf16"])
    blocks = torch.stack([layout.pack(expert) for expert in experts_of(count, 32, 48)])
    table = torch.full((count,), -1, dtype=torch.int32)
    table[present] = torch.tensor(present, dtype=torch.int32)
    return ExpertBlocks(blocks, layout, torch.float32, table)


IDS = torch.tensor([[5, 0, 2], [1, 2, 4], [0, 4, 3]])


def test_parts_are_the_experts_one_by_one() -> None:
    experts, x, weights = packed_experts(list(range(6))), randn(3, 32), randn(3, 3, seed=1)
    parts = reference.expert_parts(x, weights, IDS, experts)
    for token in range(3):
        for slot in range(3):
            gate, up, down = experts[int(IDS[token, slot])]
            expected = down @ (F.silu(gate @ x[token]) * (up @ x[token])) * weights[token, slot]
            assert torch.allclose(parts[token, slot], expected, atol=1e-5)
    summed = reference.add_parts(torch.zeros(3, 32), IDS, [], parts)
    assert torch.allclose(summed, reference.moe(x, weights, IDS, experts), atol=1e-5)


def test_experts_without_a_block_add_nothing() -> None:
    x, weights = randn(3, 32), randn(3, 3, seed=1)
    here, there = packed_experts([0, 2, 4]), packed_experts([1, 3, 5])
    parts = [reference.expert_parts(x, weights, IDS, one) for one in (here, there)]
    missing = torch.isin(IDS, torch.tensor([1, 3, 5]))
    assert not parts[0][missing].any()
    assert parts[0][~missing].any(-1).all()
    whole = packed_experts(list(range(6)))
    assert torch.equal(parts[0] + parts[1], reference.expert_parts(x, weights, IDS, whole))
    halves = [reference.moe(x, weights, IDS, one) for one in (here, there)]
    assert torch.allclose(sum(halves), reference.moe(x, weights, IDS, whole), atol=1e-5)
    assert not reference.moe(x, weights, IDS, packed_experts([])).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_parts_are_added_slot_after_slot_and_rounded_once(dtype: torch.dtype) -> None:
    residual = torch.tensor([[1.0]], dtype=dtype)
    slots = torch.tensor([2.0**-24, 2.0**-24, 1.0]).view(1, 3, 1)  # each vanishes beside 1
    ids, here = torch.tensor([[1, 2, 0]]), torch.tensor([-1, 5, -1], dtype=torch.int32)
    unread = torch.full_like(slots, torch.nan)
    mine = torch.where(here[ids].unsqueeze(-1) >= 0, slots, unread)
    others = torch.where(here[ids].unsqueeze(-1) >= 0, unread, slots)
    nothing = Parts(unread, torch.full((3,), -1, dtype=torch.int32))
    for parts in ([Parts(mine, here)], [nothing, Parts(mine, here)], [Parts(mine, here), nothing]):
        added = reference.add_parts(residual, ids, parts, others)
        assert added.tolist() == [[2.0]]
        assert added.dtype == dtype
    assert reference.add_parts(residual, ids, [], slots).tolist() == [[2.0]]
