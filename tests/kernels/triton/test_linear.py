"""Linear layers token by token, and dequantisation."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
import torch
from torch import Tensor

from tests.kernels.triton.interpreter import (
    FLOATS,
    HALF_AND_FULL,
    LIMITS,
    guarded,
    name_of,
    randn,
    relative_error,
    with_gaps,
)
from xverse_kernels import reference
from xverse_kernels.packing import INT4, INT8, PackedMatrix, WeightFormat, pack_matrix
from xverse_kernels.triton import launch, linear
from xverse_kernels.triton.launch import Workspace
from xverse_kernels.triton.linear import dequantise, gemv
from xverse_kernels.triton.tiles import GemvTile

EPS = 1e-2
BIG_TILE = {32: GemvTile(64, 256, 2), 16: GemvTile(64, 256, 2)}  # few programs: quick


def packed(rows: int, columns: int, form: WeightFormat) -> PackedMatrix:
    data = pack_matrix(randn(rows, columns, seed=1), form)
    return PackedMatrix(guarded(data), rows, columns, form)


def expected_linear(
    x: Tensor,
    weight: Tensor | PackedMatrix,
    norm: Tensor | None = None,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """The reference in fp32, on the same inputs."""
    x = x.float()
    if norm is not None:
        x = reference.rms_norm(x, norm.float(), EPS)
    dense = weight if isinstance(weight, PackedMatrix) else weight.float()
    y = reference.linear(x, dense, None if bias is None else bias.float())
    return y if residual is None else residual.float() + y


@pytest.mark.parametrize("dtype", FLOATS, ids=name_of)
@pytest.mark.parametrize(
    ("tokens", "rows", "columns"),
    [(1, 50, 160), (2, 16, 64), (3, 1, 32), (1, 101, 96), (17, 5, 80), (1, 3, 1728)],
)
def test_plain_matrices(
    dtype: torch.dtype, tokens: int, rows: int, columns: int, workspace: Workspace
) -> None:
    x = guarded(randn(tokens, columns).to(dtype))
    weight = guarded(randn(rows, columns, seed=1).to(dtype))
    actual = gemv(x, weight, workspace)
    assert (actual.dtype, actual.shape) == (dtype, (tokens, rows))
    assert relative_error(actual, expected_linear(x, weight)) < LIMITS[dtype]


@pytest.mark.parametrize("form", [INT8, INT4], ids=name_of)
@pytest.mark.parametrize(
    ("dtype", "tokens", "rows", "columns"),
    [
        (torch.float32, 1, 50, 160),
        (torch.float32, 2, 16, 64),
        (torch.float16, 3, 1, 32),
        (torch.bfloat16, 1, 33, 96),
        (torch.float16, 17, 16, 32),
        (torch.float32, 1, 16, 1728),
    ],
    ids=name_of,
)
def test_packed_matrices(
    form: WeightFormat,
    dtype: torch.dtype,
    tokens: int,
    rows: int,
    columns: int,
    workspace: Workspace,
) -> None:
    x, weight = guarded(randn(tokens, columns).to(dtype)), packed(rows, columns, form)
    actual = gemv(x, weight, workspace)
    assert (actual.dtype, actual.shape) == (dtype, (tokens, rows))
    assert relative_error(actual, expected_linear(x, weight)) < LIMITS[dtype]


@pytest.mark.parametrize("kind", ["plain", "int4"])
@pytest.mark.parametrize(
    ("has_norm", "has_bias", "has_residual"), list(product([False, True], repeat=3))
)
@pytest.mark.parametrize(
    ("dtype", "out_dtype"),
    [
        (torch.float32, None),
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float16),
    ],
    ids=name_of,
)
def test_what_may_come_with_a_linear_layer(
    kind: str,
    has_norm: bool,
    has_bias: bool,
    has_residual: bool,
    dtype: torch.dtype,
    out_dtype: torch.dtype | None,
    workspace: Workspace,
) -> None:
    rows, columns = 7, 32
    x = guarded((randn(2, columns) * 3).to(dtype))
    weight = (
        packed(rows, columns, INT4)
        if kind == "int4"
        else guarded(randn(rows, columns, seed=1).to(dtype))
    )
    norm = guarded(randn(columns, seed=2).to(dtype)) if has_norm else None
    bias = guarded(randn(rows, seed=3).to(dtype) * 5) if has_bias else None
    residual = guarded(randn(2, rows, seed=4).to(dtype) * 5) if has_residual else None
    tile = None if kind == "int4" else BIG_TILE[8 * dtype.itemsize]
    actual = gemv(
        x,
        weight,
        workspace,
        norm=norm,
        eps=EPS,
        bias=bias,
        residual=residual,
        out_dtype=out_dtype,
        tile=tile,
    )
    assert actual.dtype == (out_dtype or dtype)
    expected = expected_linear(x, weight, norm, bias, residual)
    assert relative_error(actual, expected) < LIMITS[actual.dtype]


@pytest.mark.parametrize("form", [INT8, INT4], ids=name_of)
@pytest.mark.parametrize(("splits", "block"), [(2, 16), (3, 64), (5, 16)])
def test_a_sum_split_among_programs(
    form: WeightFormat, splits: int, block: int, workspace: Workspace
) -> None:
    x, weight = guarded(randn(1, 160)), packed(20, 160, form)  # three chunks, one of them half
    norm, bias, residual = randn(160, seed=2), randn(20, seed=3), randn(1, 20, seed=4)
    tile = GemvTile(16, block, 1, splits)
    for _ in range(2):  # the second launch finds the partial sums of the first
        actual = gemv(
            x, weight, workspace, norm=norm, eps=EPS, bias=bias, residual=residual, tile=tile
        )
        assert not workspace.counters.any()
        expected = expected_linear(x, weight, norm, bias, residual)
        assert relative_error(actual, expected) < LIMITS[torch.float32]


@pytest.mark.parametrize("form", [INT8, INT4], ids=name_of)
@pytest.mark.parametrize("size", [1e-6, 6e4])
def test_packed_products_of_small_and_large_activations(
    form: WeightFormat, size: float, workspace: Workspace
) -> None:
    x, weight = randn(1, 32) * size, packed(16, 32, form)
    assert relative_error(gemv(x, weight, workspace), expected_linear(x, weight)) < 2e-6


def test_the_norm_does_not_divide_by_zero(workspace: Workspace) -> None:
    x, weight = torch.zeros(1, 32), randn(4, 32)
    assert torch.equal(gemv(x, weight, workspace, norm=torch.ones(32), eps=EPS), torch.zeros(1, 4))


@pytest.mark.parametrize("form", [INT8, INT4], ids=name_of)
@pytest.mark.parametrize("dtype", FLOATS, ids=name_of)
@pytest.mark.parametrize(("rows", "columns"), [(50, 160), (1, 32), (17, 96), (16, 1088)])
def test_dequantised_matrices_are_exact(
    form: WeightFormat, dtype: torch.dtype, rows: int, columns: int
) -> None:
    weight = packed(rows, columns, form)
    actual, expected = dequantise(weight, dtype), weight.to_dense(dtype)
    if dtype == torch.bfloat16:  # cut, not rounded
        expected = weight.to_dense(torch.float32).view(torch.int32).bitwise_and(-65536)
        expected = expected.view(torch.float32).bfloat16()
    assert actual.dtype == dtype
    assert torch.equal(actual, expected)


@pytest.mark.parametrize("which", ["x", "weight", "norm", "bias", "residual"])
def test_rows_with_gaps_are_refused(which: str, workspace: Workspace) -> None:
    shapes = {"x": (2, 32), "weight": (4, 32), "norm": (32,), "bias": (4,), "residual": (2, 4)}
    tensors = {name: torch.zeros(shape) for name, shape in shapes.items()}
    shape = shapes[which]
    tensors[which] = torch.zeros(*shape[:-1], 2 * shape[-1])[..., ::2]
    x, weight = tensors.pop("x"), tensors.pop("weight")
    with pytest.raises(ValueError, match=r"contiguous rows.*: call \.contiguous\(\) first"):
        gemv(x, weight, workspace, eps=EPS, **tensors)


@pytest.mark.parametrize("form", [INT8, INT4], ids=name_of)
def test_packed_bytes_with_gaps_are_refused(form: WeightFormat, workspace: Workspace) -> None:
    whole = packed(16, 64, form)
    gaps = replace(whole, data=with_gaps(whole.data))
    with pytest.raises(ValueError, match=r"contiguous rows.*: call \.contiguous\(\) first"):
        gemv(randn(1, 64), gaps, workspace)
    with pytest.raises(ValueError, match=r"contiguous rows.*: call \.contiguous\(\) first"):
        dequantise(gaps, torch.float32)


@pytest.mark.parametrize("dtype", HALF_AND_FULL, ids=name_of)
def test_memory_that_is_not_aligned_is_refused(dtype: torch.dtype, workspace: Workspace) -> None:
    x = torch.zeros(33, dtype=dtype)[1:].view(1, 32)
    with pytest.raises(ValueError, match="aligned to 16 bytes"):
        gemv(x, torch.zeros(4, 32, dtype=dtype), workspace)


def test_more_tiles_than_there_were_counters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "COUNTERS", 2)
    space = Workspace(torch.device("cpu"))
    x, weight = guarded(randn(2, 160)), packed(50, 160, INT4)
    for _ in range(2):
        actual = gemv(x, weight, space, tile=GemvTile(16, 16, 1, 2))
        assert relative_error(actual, expected_linear(x, weight)) < LIMITS[torch.float32]
        assert not space.counters.any()


@pytest.mark.parametrize("form", [None, INT8, INT4], ids=name_of)
@pytest.mark.parametrize("splits", [1, 2])
def test_more_tiles_than_a_grid_has_programs(
    form: WeightFormat | None, splits: int, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """65535 along that axis; here 3 stand for them."""
    monkeypatch.setattr(linear, "MOST_PROGRAMS", 3)
    monkeypatch.setattr(launch, "MOST_PROGRAMS", 3)
    x = guarded(randn(2, 160))
    weight = guarded(randn(90, 160, seed=1)) if form is None else packed(90, 160, form)
    tile = GemvTile(16, 32, 1, 1 if form is None else splits)
    actual = gemv(x, weight, workspace, tile=tile)
    assert relative_error(actual, expected_linear(x, weight)) < LIMITS[torch.float32]


def test_a_grid_that_no_gpu_launches_is_an_error(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "MOST_PROGRAMS", 3)
    with pytest.raises(ValueError, match="no GPU launches more"):
        gemv(randn(1, 32), randn(4 * 5, 32), workspace)
