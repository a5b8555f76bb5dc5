"""The Triton backend: every operation beside the reference's, and when it is refused."""

from __future__ import annotations

import sys
from pathlib import Path

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
    random_expert,
    relative_error,
    route_randomly,
)
from tests.kernels.triton.test_attention import ONE_PART, Case
from tests.kernels.triton.test_experts import expected_sum
from xverse_kernels.backend import (
    BackendUnavailableError,
    KernelBackend,
    select_backend,
    why_not_cpu,
    why_not_triton,
)
from xverse_kernels.packing import (
    FORMATS,
    INT4,
    INT8,
    PackedMatrix,
    WeightFormat,
    pack_matrix,
)
from xverse_kernels.reference_backend import ReferenceBackend
from xverse_kernels.triton.backend import TritonBackend
from xverse_kernels.triton.tiles import experts_each_tokens, gemv_tokens
from xverse_kernels.types import Norm, Projection

FORMS = list(FORMATS.values())
REFERENCE = ReferenceBackend()


@pytest.fixture
def kernels() -> KernelBackend:
    return select_backend("triton", CPU)


def norm_of(width: int, dtype: torch.dtype = torch.float32) -> Norm:
    return Norm(guarded(randn(width, seed=21).to(dtype)), 1e-5)


def projection(rows: int, form: WeightFormat | None, dtype: torch.dtype, bias: bool) -> Projection:
    weight: Tensor | PackedMatrix = randn(rows, 64, seed=rows)
    if form is None:
        weight = guarded(weight.to(dtype))
    else:
        weight = PackedMatrix(pack_matrix(weight, form), rows, 64, form)
    return Projection(weight, guarded(randn(rows, seed=22).to(dtype)) if bias else None)


@pytest.mark.parametrize("tokens", [1, 17])
@pytest.mark.parametrize("form", [None, INT8, INT4], ids=str)
@pytest.mark.parametrize("dtype", HALF_AND_FULL, ids=name_of)
@pytest.mark.parametrize(
    ("rows", "bias", "residual", "out_dtype"),
    [
        ((20, 7, 7), True, False, None),
        ((20,), True, True, None),
        ((20,), False, True, None),
        ((20, 7), False, False, torch.float32),
    ],
)
def test_linear(
    kernels: KernelBackend,
    tokens: int,
    form: WeightFormat | None,
    dtype: torch.dtype,
    rows: tuple[int, ...],
    bias: bool,
    residual: bool,
    out_dtype: torch.dtype | None,
) -> None:
    x, norm = guarded(randn(tokens, 64).to(dtype)), norm_of(64, dtype)
    projections = [projection(count, form, dtype, bias) for count in rows]
    added = guarded(randn(tokens, sum(rows), seed=23).to(dtype)) if residual else None
    actual = kernels.linear(x, projections, norm=norm, residual=added, out_dtype=out_dtype)
    assert actual.dtype == (out_dtype or dtype)
    wide = [
        Projection(
            one.weight if isinstance(one.weight, PackedMatrix) else one.weight.float(),
            None if one.bias is None else one.bias.float(),
        )
        for one in projections
    ]
    expected = REFERENCE.linear(
        x.float(),
        wide,
        norm=Norm(norm.weight.float(), norm.eps),
        residual=None if added is None else added.float(),
    )
    assert relative_error(actual, expected) < 2 * LIMITS[dtype]


@pytest.mark.parametrize("bits", [32, 16, 8, 4])
def test_linear_layers_and_experts_change_over_from_few_tokens_to_many(bits: int) -> None:
    assert 2 <= gemv_tokens(bits) <= 16
    assert 2 <= experts_each_tokens(bits) <= 16
    assert experts_each_tokens(bits) <= experts_each_tokens(bits, by_torch=True) <= 64


@pytest.mark.parametrize("past", [0, 6])
@pytest.mark.parametrize("tokens", [1, 9])
def test_attention_of_a_stretch(kernels: KernelBackend, past: int, tokens: int) -> None:
    case = Case((4, 2, 80), 20, {2: past}, tokens=tokens, sequences=4)
    expected = REFERENCE.attend_span(
        case.qkv, case.rotary, case.wide_keys, case.wide_values, 2, past
    )
    actual = kernels.attend_span(case.qkv, case.rotary, case.keys, case.values, 2, past)
    assert relative_error(actual, expected) < 2e-6
    case.check_caches()


def test_attention_of_a_token_each(kernels: KernelBackend) -> None:
    case = Case((4, 2, 80), 20, {2: 19, 0: 0, 1: 7})
    expected = case.expect_each()
    actual = kernels.attend_each(
        case.qkv, case.rotary, case.keys, case.values, case.sequences, case.positions, ONE_PART
    )
    assert relative_error(actual, expected) < 2e-6
    case.check_caches()


@pytest.mark.parametrize("tokens", [1, 16, 17])
def test_route(kernels: KernelBackend, tokens: int) -> None:
    x, norm, router = guarded(randn(tokens, 96)), norm_of(96), guarded(randn(7, 96, seed=2))
    actual = kernels.route(x, norm, router, 3, 2)
    expected = REFERENCE.route(x, norm, router, 3, 2)
    assert torch.equal(actual.expert_ids.long(), expected.expert_ids)
    for ours, theirs in (
        (actual.normed, expected.normed),
        (actual.weights, expected.weights),
        (actual.logits, expected.logits),
    ):
        assert relative_error(ours, theirs) < 2e-6


@pytest.mark.parametrize("form", FORMS, ids=name_of)
@pytest.mark.parametrize("tokens", [1, 20])
def test_experts(kernels: KernelBackend, form: WeightFormat, tokens: int) -> None:
    experts = pack_experts(6, 32, 32, form, table=[4, 0, 5, 1, 3, 2])
    routed, residual = route_randomly(tokens, 32, 6, 3), guarded(randn(tokens, 32, seed=8))
    between: list[None] = []
    actual = kernels.experts(routed, experts, residual, lambda: between.append(None))
    as_int64 = routed._replace(expert_ids=routed.expert_ids.long())
    assert relative_error(actual, REFERENCE.experts(as_int64, experts, residual)) < 3e-6
    assert relative_error(actual, expected_sum(routed, experts, residual)) < 3e-6
    # the reference's int64 ids are taken as well
    assert torch.equal(kernels.experts(as_int64, experts, residual), actual)


@pytest.mark.parametrize("form", [FORMATS["fp16"], INT4], ids=name_of)
@pytest.mark.parametrize("tokens", [1, 20])
def test_the_mlp_of_a_dense_model(kernels: KernelBackend, form: WeightFormat, tokens: int) -> None:
    experts = pack_experts(1, 64, 96, form)
    x, residual = guarded(randn(tokens, 64) * 3), guarded(randn(tokens, 64, seed=8))
    actual = kernels.mlp(x, norm_of(64), experts, residual)
    assert relative_error(actual, REFERENCE.mlp(x, norm_of(64), experts, residual)) < 3e-6


def test_experts_that_are_not_packed_are_refused(kernels: KernelBackend) -> None:
    routed = route_randomly(1, 32, 2, 1)
    with pytest.raises(TypeError, match="take experts as packed blocks"):
        kernels.experts(routed, [random_expert(0, 32, 32)] * 2, torch.zeros(1, 32))


def test_under_the_interpreter_it_runs_on_the_cpu() -> None:
    assert isinstance(select_backend("auto", CPU), TritonBackend)
    assert select_backend("triton", CPU).name == "triton"
    assert select_backend("reference", CPU).name == "reference"


def check_refused(device: torch.device, reason: str) -> None:
    with pytest.raises(BackendUnavailableError, match=reason) as caught:
        select_backend("triton", device)
    assert caught.value.backend == "triton"
    on_host = device.type == "cpu" and why_not_cpu(device) is None
    assert select_backend("auto", device).name == ("cpu" if on_host else "reference")


def test_without_the_interpreter_the_cpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET")
    check_refused(CPU, "need a GPU")


def test_other_devices_are_refused() -> None:
    check_refused(torch.device("meta"), "need a CUDA or ROCm device, not meta")


def test_old_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (7, 0))
    check_refused(torch.device("cuda"), r"needs compute capability 7\.5, this GPU has 7\.0")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("compiler", "a C compiler. Debian, Ubuntu: sudo apt install gcc"),
        ("headers", r"Python's header files. .*: sudo apt install python3\.\d+-dev"),
    ],
)
def test_what_builds_a_launcher_must_be_there(
    name: str, reason: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "cc").touch(mode=0o755)
    (tmp_path / "Python.h").touch()
    nothing = tmp_path / "nothing"
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(nothing if name == "compiler" else tmp_path))
    headers = str(nothing if name == "headers" else tmp_path)
    monkeypatch.setattr("sysconfig.get_path", lambda _name: headers)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (8, 0))
    check_refused(torch.device("cuda"), reason)


def test_a_compiler_of_another_name_will_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "Python.h").touch()
    (tmp_path / "mine").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CC", "mine")
    monkeypatch.setattr("sysconfig.get_path", lambda _name: str(tmp_path))
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (8, 0))
    assert why_not_triton(torch.device("cuda")) is None


def test_without_triton_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    check_refused(CPU, "triton is not installed: pip install triton")


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(BackendUnavailableError, match=r"cudnn: no such backend.*auto, reference"):
        select_backend("cudnn", CPU)


def test_plans_count_the_scratch_memory() -> None:
    from xverse_kernels.triton.launch import Workspace
    from xverse_runtime.model_sizes import SCRATCH

    space = Workspace(torch.device("cpu"))
    assert space.counters.nbytes + space.partials(1).nbytes == SCRATCH
