"""The reference backend: it can be interrupted, and pieces give what the whole gives."""

from __future__ import annotations

import pytest
import torch

from xverse_kernels import reference_backend
from xverse_kernels.packing import FORMATS, PackedMatrix, pack_matrix
from xverse_kernels.reference_backend import ReferenceBackend
from xverse_kernels.types import Norm, Projection, SwigluWeights

NORM = Norm(torch.ones(64), 1e-6)


def packed(rows: int, form: str) -> PackedMatrix:
    weight = torch.randn(rows, 64, generator=torch.Generator().manual_seed(0))
    return PackedMatrix(pack_matrix(weight, FORMATS[form]), rows, 64, FORMATS[form])


@pytest.mark.parametrize("form", ["int4", "int8"])
@pytest.mark.parametrize("rows", [16, 33, 50, 128])
def test_a_packed_matrix_in_pieces_is_the_matrix(
    form: str, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    matrix, bias, x = packed(rows, form), torch.randn(rows), torch.randn(3, 64)
    whole = ReferenceBackend().linear(x, [Projection(matrix, bias)])
    monkeypatch.setattr(reference_backend, "UNPACKED", 32 * 64)
    looks: list[None] = []
    pieces = ReferenceBackend().linear(
        x, [Projection(matrix, bias)], between=lambda: looks.append(None)
    )
    assert torch.allclose(pieces, whole, atol=1e-5)
    assert len(looks) == -(-rows // 32)


def test_the_rows_of_a_slice() -> None:
    matrix = packed(50, "int4")
    dense = matrix.to_dense(torch.float32)
    for first, last in ((0, 16), (16, 50), (32, 40)):
        assert torch.equal(matrix.row_slice(first, last).to_dense(torch.float32), dense[first:last])


def test_a_dense_mlp_in_pieces_is_the_mlp(monkeypatch: pytest.MonkeyPatch) -> None:
    mlp = [SwigluWeights(torch.randn(48, 64), torch.randn(48, 64), torch.randn(64, 48))]
    x = torch.randn(7, 64)
    whole = ReferenceBackend().mlp(x, NORM, mlp, x)
    monkeypatch.setattr(reference_backend, "UNINTERRUPTED", 2 * 3 * 48 * 64)
    looks: list[None] = []
    pieces = ReferenceBackend().mlp(x, NORM, mlp, x, lambda: looks.append(None))
    assert torch.allclose(pieces, whole, rtol=1e-4, atol=1e-3)
    assert len(looks) == 4
