"""What the tests of the C kernels share: weights, expected results, poisoned memory."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, partial
from typing import Any

import pytest
import torch
from torch import Tensor

from xverse_kernels import reference
from xverse_kernels.cpu.extension import instruction_sets, why_missing
from xverse_kernels.packing import (
    BF16,
    INT4,
    INT8,
    ExpertBlocks,
    ExpertLayout,
    PackedMatrix,
    WeightFormat,
    pack_matrix,
)
from xverse_kernels.quantise import GROUP
from xverse_kernels.types import Norm, Projection, Rotary, RoutedTokens, SwigluWeights

SETS = instruction_sets()
needs_extension = pytest.mark.skipif(not SETS, reason=str(why_missing()))
FORMS = (INT4, INT8, BF16)
# Of norms over a call. 8-bit activations: a group's step is its largest value over 127, which for
# normal ones is 0.5 % of their norm; two layers of that, and a product, stay below 1 %.
LIMITS = {INT4: 1e-2, INT8: 1e-2, BF16: 1e-5}
# With the same rounding of activations: what fp32 sums leave, and rare ties that go the other way.
ROUNDED_LIMIT = 1e-4
NAN = float("nan")


def name_of(value: Any) -> str | None:
    """Test ids of weight formats and dtypes."""
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    return value.name if isinstance(value, WeightFormat) else None


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """NaN, which is below no limit, where poison was left or read."""
    expected = expected.double()
    return float((actual.double() - expected).norm() / expected.norm())


def guarded(tensor: Tensor) -> Tensor:
    """A copy between poison: whoever reads before or behind it gets NaN."""
    space = 4096
    buffer = torch.full((tensor.numel() + 2 * space,), NAN, dtype=tensor.dtype)
    return buffer[space : space + tensor.numel()].view(tensor.shape).copy_(tensor)


def poison_allocations(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the backend allocates is NaN until somebody writes it."""
    empty, empty_like = torch.empty, torch.empty_like

    def poisoned(tensor: Tensor) -> Tensor:
        return tensor.fill_(NAN) if tensor.is_floating_point() else tensor.fill_(-77)

    monkeypatch.setattr(torch, "empty", lambda *a, **k: poisoned(empty(*a, **k)))
    monkeypatch.setattr(torch, "empty_like", lambda *a, **k: poisoned(empty_like(*a, **k)))


def matrix(rows: int, columns: int, form: WeightFormat, seed: int = 1) -> PackedMatrix:
    weight = randn(rows, columns, seed=seed) / columns**0.5
    return PackedMatrix(pack_matrix(weight, form), rows, columns, form)


def random_expert(hidden: int, width: int, seed: int) -> SwigluWeights:
    return SwigluWeights(
        randn(width, hidden, seed=seed) * 2 / hidden**0.5,
        randn(width, hidden, seed=seed + 1) * 2 / hidden**0.5,
        randn(hidden, width, seed=seed + 2) / width**0.5,
    )


def expert_blocks(
    count: int,
    hidden: int,
    width: int,
    form: WeightFormat,
    *,
    table: Sequence[int] | None = None,
    dtype: torch.dtype = torch.float32,
) -> ExpertBlocks:
    """Random experts. With a table, expert e lies in block ``table[e]``; blocks that are nobody's
    are all ones, which is NaN."""
    layout = ExpertLayout(hidden, width, form)
    places = list(range(count)) if table is None else list(table)
    blocks = torch.full((max(places) + 1, layout.block_bytes), 0xFF, dtype=torch.uint8)
    for expert, place in enumerate(places):
        if place >= 0:
            blocks[place] = layout.pack(random_expert(hidden, width, 7 * expert))
    return ExpertBlocks(blocks, layout, dtype, torch.tensor(places, dtype=torch.int32))


five_experts = cache(partial(expert_blocks, 5))  # for those who do not write into them


def route_randomly(
    tokens: int, hidden: int, experts: int, slots: int, seed: int = 0
) -> RoutedTokens:
    """Different experts for each token, and weights; no router was asked."""
    source = torch.Generator().manual_seed(seed + 100)
    ids = torch.stack([torch.randperm(experts, generator=source)[:slots] for _ in range(tokens)])
    return RoutedTokens(
        randn(tokens, hidden, seed=seed + 6),
        torch.rand(tokens, slots, generator=source),
        ids,
        torch.zeros(tokens, experts),
    )


def exact_sum(routed: RoutedTokens, experts: ExpertBlocks) -> Tensor:
    """The weighted sum of experts in fp64, on dequantised weights."""
    exact = ExpertBlocks(experts.blocks, experts.layout, torch.float64, experts.table)
    return reference.moe(
        routed.normed.double(), routed.weights.double(), routed.expert_ids, exact
    ).double()


def rounded(x: Tensor, form: WeightFormat, steps: int = 127) -> Tensor:
    """Activations as the kernels read them, in fp64: groups of 32 in ``steps`` of the largest."""
    if form is BF16:
        return x.double()
    groups = x.float().unflatten(-1, (-1, GROUP))
    largest = groups.abs().amax(-1, keepdim=True)
    q = torch.where(largest > 0, groups * (steps / largest), groups).round()
    return (q.double() * (largest / steps).double()).flatten(-2)


WIDE = 127 * 256


def rounded_sum(routed: RoutedTokens, experts: ExpertBlocks) -> Tensor:
    """`exact_sum` of activations in 8 bits, and of the products of gate and up in 16."""
    form = experts.layout.form
    x, out = rounded(routed.normed, form), torch.zeros(routed.normed.shape, dtype=torch.float64)
    for token, ids in enumerate(routed.expert_ids.tolist()):
        for slot, expert in enumerate(ids):
            gate, up, down = experts.layout.unpack(
                experts.blocks[int(experts.table[expert])], torch.float64
            )
            h = torch.nn.functional.silu(gate @ x[token]) * (up @ x[token])
            out[token] += routed.weights[token, slot].double() * (down @ rounded(h, form, WIDE))
    return out


def norm_of(width: int, seed: int = 21) -> Norm:
    return Norm(guarded(randn(width, seed=seed)), 1e-5)


def exact_linear(x: Tensor, projections: Sequence[Projection], norm: Norm | None = None) -> Tensor:
    """Linear layers side by side in fp64, on dequantised weights."""
    if norm is not None:
        x = reference.rms_norm(x, norm.weight, norm.eps)
    parts = []
    for weight, bias in projections:
        dense = weight.to_dense(torch.float64) if isinstance(weight, PackedMatrix) else weight
        parts.append(x.double() @ dense.double().T + (0.0 if bias is None else bias.double()))
    return torch.cat(parts, dim=1)


def rotary(positions: int, dim: int) -> Rotary:
    angles = torch.arange(positions)[:, None] * 10000.0 ** (-torch.arange(dim // 2) / (dim // 2))
    both = torch.cat((angles, angles), dim=1)
    return Rotary(guarded(both.cos()), guarded(both.sin()))


def attention_case(
    tokens: int, heads: int, kv_heads: int, dim: int, dtype: torch.dtype, past: int = 0
) -> tuple[Tensor, Rotary, Tensor, Tensor]:
    """Unrotated heads, and a cache that holds ``past`` positions and is NaN beyond."""
    qkv = guarded(randn(tokens, (heads + 2 * kv_heads) * dim, seed=3) * 2)
    cache = [guarded(torch.full((3, kv_heads, past + tokens + 3, dim), torch.nan).to(dtype))]
    cache.append(cache[0].clone())
    for seed, one in enumerate(cache):
        one[:, :, :past] = randn(3, kv_heads, past, dim, seed=seed + 4).to(dtype)
    return qkv, rotary(past + tokens + 3, dim), *cache
