"""Products of many tokens by torch, for devices whose matrix instructions Triton does not use: as
if this were one of compute capability 7.5."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.kernels.triton.interpreter import (
    CPU,
    HALF_AND_FULL,
    LIMITS,
    guarded,
    name_of,
    pack_experts,
    randn,
    relative_error,
    route_randomly,
    routed_to,
)
from tests.kernels.triton.test_attention import Case
from tests.kernels.triton.test_experts import FORMS, TWO_FORMS, expected_sum
from tests.kernels.triton.test_model import packed_weights
from tests.runtime.helpers import GOLDEN, expected_cases
from xverse_kernels.backend import select_backend
from xverse_kernels.packing import FP16, INT4, INT8, ExpertBlocks, ExpertLayout, WeightFormat
from xverse_kernels.reference_backend import ReferenceBackend
from xverse_kernels.triton import attention, backend, experts, launch, products, tiles
from xverse_kernels.triton.backend import TritonBackend
from xverse_kernels.triton.products import experts_by_torch
from xverse_kernels.types import Norm, SwigluWeights
from xverse_runtime.config import ModelConfig
from xverse_runtime.kv_cache import KVCache, KVPool
from xverse_runtime.model import Decoder
from xverse_runtime.model_dir import ModelDirectory
from xverse_runtime.rope import RotaryTable


def name_of_way(way: Callable[..., Tensor]) -> str:
    return way.__name__


TURING = torch.device("cuda", 0)


@pytest.fixture
def no_triton_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """Launching a kernel with products is an error."""

    def refused(*_args: object, **_kwargs: object) -> None:
        raise AssertionError("a product by Triton")

    monkeypatch.setattr(attention, "_prefill_attention", refused)
    monkeypatch.setattr(experts, "_grouped_gate_up", refused)
    monkeypatch.setattr(experts, "_grouped_down", refused)


# ---------------------------------------------------------------------- results


@pytest.mark.parametrize("form", FORMS, ids=name_of)
@pytest.mark.parametrize("dtype", HALF_AND_FULL, ids=name_of)
@pytest.mark.parametrize(("hidden", "width"), [(96, 32), (160, 96)])
def test_formats_dtypes_and_widths(
    form: WeightFormat, dtype: torch.dtype, hidden: int, width: int
) -> None:
    blocks = pack_experts(4, hidden, width, form)
    routed = route_randomly(7, hidden, 4, 2, dtype)
    residual = guarded(randn(7, hidden, seed=8).to(dtype))
    before = residual.clone()
    actual = experts_by_torch(routed, blocks, residual)
    assert actual.dtype == dtype
    assert relative_error(actual, expected_sum(routed, blocks, residual)) < 2 * LIMITS[dtype]
    assert torch.equal(residual, before)


@pytest.mark.parametrize("form", TWO_FORMS, ids=name_of)
@pytest.mark.parametrize(
    ("tokens", "count", "slots"),
    [(1, 8, 1), (2, 8, 6), (3, 5, 5), (17, 5, 2), (17, 1, 1), (40, 6, 6)],
)
def test_tokens_and_slots(form: WeightFormat, tokens: int, count: int, slots: int) -> None:
    blocks = pack_experts(count, 64, 32, form)
    routed = route_randomly(tokens, 64, count, slots)
    residual = guarded(randn(tokens, 64, seed=8))
    actual = experts_by_torch(routed, blocks, residual)
    assert relative_error(actual, expected_sum(routed, blocks, residual)) < 3e-6


@pytest.mark.parametrize("form", TWO_FORMS, ids=name_of)
@pytest.mark.parametrize("table", [[0, -1, 3, -1, 1], [-1] * 5], ids=str)
def test_an_expert_without_a_block_adds_exactly_nothing(
    form: WeightFormat, table: list[int]
) -> None:
    """What is not there is not read: blocks that nobody has hold no numbers."""
    blocks = pack_experts(5, 64, 32, form, table=table, blocks=4)
    routed = route_randomly(20, 64, 5, 2)
    residual = guarded(randn(20, 64, seed=8))
    actual = experts_by_torch(routed, blocks, residual)
    assert relative_error(actual, expected_sum(routed, blocks, residual)) < 3e-6
    there = blocks.table[routed.expert_ids.long()] >= 0
    alone = ~there.any(dim=1)
    assert torch.equal(actual[alone], residual[alone])
    assert bool(alone.any())


def test_groups_of_experts_one_after_the_other() -> None:
    """In an fp32 residual, as prompts stream through when not all experts fit."""
    blocks, routed = pack_experts(6, 64, 32, INT4), route_randomly(9, 64, 6, 3, torch.float16)
    residual = guarded(randn(9, 64, seed=8))
    total = residual
    for first in range(0, 6, 2):
        table = torch.full_like(blocks.table, -1)
        table[first : first + 2] = blocks.table[first : first + 2]
        some = ExpertBlocks(blocks.blocks, blocks.layout, torch.float16, table)
        total = experts_by_torch(routed, some, total)
        assert total.dtype == torch.float32
    expected = expected_sum(routed, blocks, residual)
    assert relative_error(total, expected) < 2 * LIMITS[torch.float16]


def test_many_tokens_of_one_expert_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    plain = products.product

    def watched(x: Tensor, weight: Tensor) -> Tensor:
        sizes.append(x.shape[0])
        return plain(x, weight)

    monkeypatch.setattr(products, "MOST_ROWS", 8)
    monkeypatch.setattr(products, "product", watched)
    blocks, ids = pack_experts(3, 64, 32, INT8), torch.full((21, 1), 2)
    routed, residual = routed_to(ids, 64), guarded(randn(21, 64, seed=8))
    actual = experts_by_torch(routed, blocks, residual)
    assert relative_error(actual, expected_sum(routed, blocks, residual)) < 3e-6
    assert sizes == [8, 8, 8, 8, 5, 5]


def test_the_host_waits_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading a tensor's numbers is what makes it wait; so would choosing by a mask."""
    waits: list[str] = []

    def watched(name: str, plain: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object, **kwargs: object) -> object:
            waits.append(name)
            return plain(*args, **kwargs)

        return call

    blocks, routed = pack_experts(4, 64, 32, FP16), route_randomly(9, 64, 4, 2)
    residual = guarded(randn(9, 64, seed=8))
    for name in ("tolist", "item", "nonzero", "cpu", "__bool__", "__int__", "__float__"):
        monkeypatch.setattr(Tensor, name, watched(name, getattr(Tensor, name)))
    pairs = experts.sort_pairs(routed, blocks)  # the interpreter reads numbers
    monkeypatch.setattr(products, "sort_pairs", lambda *_: pairs)
    waits.clear()
    experts_by_torch(routed, blocks, residual)
    assert waits == ["tolist"]


# ---------------------------------------------------------------------- range of fp16


@pytest.mark.parametrize("form", [FP16, INT8, INT4], ids=name_of)
@pytest.mark.parametrize("by", [products.product, products.saturated_product], ids=name_of_way)
def test_an_up_product_beyond_fp16_does_not_become_nan(
    form: WeightFormat,
    by: Callable[[Tensor, Tensor], Tensor],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Beside a gate so negative that SiLU is zero: 0 times infinity."""
    monkeypatch.setattr(products, "product", by)
    layout = ExpertLayout(64, 32, form)
    ones = torch.ones(32, 64)
    block = layout.pack(SwigluWeights(-ones, 30 * ones, torch.ones(64, 32)))
    blocks = ExpertBlocks(block[None], layout, torch.float16)
    routed = routed_to(torch.zeros(3, 1, dtype=torch.int32), 64)
    normed = torch.full((3, 64), 100.0, dtype=torch.float16)
    routed = routed._replace(normed=normed, weights=routed.weights.half())
    assert (normed @ (30 * ones).half().t()).isinf().all()
    residual = guarded(randn(3, 64, seed=8))
    assert torch.equal(experts_by_torch(routed, blocks, residual), residual)


def test_large_activations_of_a_whole_model_stay_in_range(
    no_triton_products: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """fp16 from end to end, with a residual stream that only fp32 holds, and prompts by torch."""
    monkeypatch.setitem(tiles.EACH_TOKENS_BY_TORCH, 16, 2)
    directory = ModelDirectory.open(GOLDEN / "moe-gqa")
    config = ModelConfig.from_dir(directory)
    ids = expected_cases("moe-gqa")[0]["prompt_token_ids"]
    weights = packed_weights(config, directory, FP16)
    large = weights.embedding.float() * 60000.0
    assert large.abs().max() > torch.finfo(torch.float16).max
    logits = {}
    for kernels, dtype in (
        (TritonBackend(CPU, by_torch=True), torch.float16),
        (ReferenceBackend(), torch.float32),
    ):
        cast = _cast(replace(weights, embedding=large), dtype)
        decoder = Decoder(config, cast, kernels, RotaryTable(config, 64, CPU))
        logits[dtype] = decoder.forward(ids, KVCache(KVPool(config, 64, dtype, CPU)))
    assert torch.isfinite(logits[torch.float16]).all()
    difference = (logits[torch.float16] - logits[torch.float32]).norm()
    assert difference < 0.02 * logits[torch.float32].norm()


def _cast(weights, dtype: torch.dtype):  # type: ignore[no-untyped-def]
    """All but embedding, routers and blocks in another dtype."""

    def projected(one):  # type: ignore[no-untyped-def]
        bias = None if one.bias is None else one.bias.to(dtype)
        return one._replace(weight=one.weight.to(dtype).clone(), bias=bias)

    layers = []
    for layer in weights.layers:
        blocks = layer.mlp.experts
        again = ExpertBlocks(blocks.blocks, blocks.layout, dtype, blocks.table)
        qkv = tuple(projected(one) for one in layer.attention.qkv)
        layers.append(
            replace(
                layer,
                input_norm=layer.input_norm.to(dtype),
                post_attention_norm=layer.post_attention_norm.to(dtype),
                attention=replace(layer.attention, qkv=qkv, o=projected(layer.attention.o)),
                mlp=replace(layer.mlp, experts=again),
            )
        )
    head = weights.head.to(dtype).clone()
    return replace(weights, layers=tuple(layers), norm=weights.norm.to(dtype), head=head)


# ---------------------------------------------------------------------- the choice


@pytest.mark.parametrize(
    ("capability", "hip", "multiplies"),
    [((7, 5), None, False), ((8, 0), None, True), ((12, 0), None, True), ((7, 5), "6.4", True)],
)
def test_triton_multiplies_from_8_0_on(
    capability: tuple[int, int], hip: str | None, multiplies: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: capability)
    monkeypatch.setattr(torch.version, "hip", hip)
    assert launch.triton_multiplies(TURING) == multiplies


@pytest.mark.parametrize("form", [FP16, INT4], ids=name_of)
def test_an_old_device_has_torch_multiply_many_tokens(
    form: WeightFormat, no_triton_products: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The backend that is selected, with no other word than what the device is."""
    monkeypatch.setattr(backend, "triton_multiplies", lambda _device: False)
    kernels, calls = select_backend("triton", CPU), []
    by_torch = experts_by_torch

    def counted(*args: object) -> Tensor:
        calls.append(args)
        return by_torch(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(backend, "experts_by_torch", counted)
    monkeypatch.setitem(tiles.EACH_TOKENS_BY_TORCH, form.bits, 6)
    blocks = pack_experts(3, 32, 32, form)
    for tokens, expected_calls in ((6, 0), (7, 1)):
        routed = route_randomly(tokens, 32, 3, 1)
        residual = guarded(randn(tokens, 32, seed=8))
        found = kernels.experts(routed, blocks, residual)
        assert relative_error(found, expected_sum(routed, blocks, residual)) < 3e-6
        assert len(calls) == expected_calls
    case = Case((4, 2, 80), 20, {2: 6}, tokens=9, sequences=4)
    arguments = (case.qkv, case.rotary, case.keys, case.values, 2, 6)
    found = kernels.attend_span(*arguments)
    wide = (case.qkv, case.rotary, case.wide_keys, case.wide_values, 2, 6)
    assert relative_error(found, ReferenceBackend().attend_span(*wide)) < 3e-6


def test_a_dense_model_takes_the_same_way(no_triton_products: None) -> None:
    kernels = TritonBackend(CPU, by_torch=True)
    blocks, x = pack_experts(1, 64, 96, INT8), guarded(randn(40, 64))
    norm = Norm(guarded(randn(64, seed=21)), 1e-5)
    residual = guarded(randn(40, 64, seed=23))
    found = kernels.mlp(x, norm, blocks, residual)
    expected = ReferenceBackend().mlp(x, norm, [blocks[0]], residual)
    assert relative_error(found, expected) < 3e-6


def test_a_graph_is_not_held_up(no_triton_products: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """While one is made the host cannot wait: pairs read their experts one by one."""
    monkeypatch.setattr(backend, "_is_captured", lambda _x: True)
    monkeypatch.setattr(backend, "experts_by_torch", None)
    monkeypatch.setitem(tiles.EACH_TOKENS_BY_TORCH, 8, 2)
    blocks, routed = pack_experts(3, 64, 32, INT8), route_randomly(5, 64, 3, 2)
    residual = guarded(randn(5, 64, seed=8))
    found = TritonBackend(CPU, by_torch=True).experts(routed, blocks, residual)
    assert relative_error(found, expected_sum(routed, blocks, residual)) < 3e-6
