"""`python -m bench.gpu kernels` without a GPU: every row of a small model, all but the time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.kernels.triton import interpreter  # noqa: F401  (before any kernel is imported)

# isort: split
from bench.gpu import kernel_attention, kernel_rows, kernels
from bench.gpu.inputs import Shape
from bench.gpu.parity import near
from bench.table import Report
from xverse_kernels.kv_rows import Int8Rows, Rows, row_bytes, to_int8
from xverse_kernels.triton.tiles import GemmTile

SMALL = Shape(
    hidden=64,
    width=32,
    experts=7,
    shared=2,
    top_k=3,
    vocab=202,
    heads=2,
    dim=80,
    dtype=torch.float16,
    device="cpu",
    l2_bytes=1,
)


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many calls were timed for each row, each made once."""
    counts: list[int] = []

    def once(calls: Sequence[Callable[[], Any]]) -> float:
        for call in calls:
            call()
        counts.append(len(calls))
        return 1.0

    monkeypatch.setattr(kernel_rows, "microseconds", once)
    monkeypatch.setattr(kernel_rows, "read_bandwidth", lambda: 1e9)
    monkeypatch.setattr(kernel_rows, "matmul_rate", lambda: 1e12)
    monkeypatch.setattr(kernels, "FEW", (1,))
    monkeypatch.setattr(kernels, "MANY", (5, 21))
    monkeypatch.setattr(kernels, "SPAN", 20)
    monkeypatch.setattr(kernel_attention, "PASTS", (16, 260))
    monkeypatch.setattr(kernel_attention, "DECODE_TILES", ((64, 4, 8),))
    monkeypatch.setattr(kernel_attention, "SPANS", ((8, 0), (12, 36)))
    monkeypatch.setattr(kernel_attention, "PREFILL_TILES", (GemmTile(64, 64, 0, 4, 3),))
    monkeypatch.setattr(kernel_attention, "CAPACITY", 300)
    return counts


@pytest.mark.slow
def test_every_row_is_right_and_in_the_table(timed: list[int], tmp_path: Path) -> None:
    report = Report("kernels", tmp_path, [])
    kernels.measure_kernels(report, ["fp16", "int4"], SMALL)
    rows = [line for line in report.write().read_text().splitlines() if " | 1.00 | " in line]
    assert len(rows) == len(timed) > 35
    assert min(timed) >= 2


def test_what_is_wrong_is_not_timed(timed: list[int], tmp_path: Path) -> None:
    report = Report("kernels", tmp_path, [])
    bench, right = kernel_rows.KernelRows(report, SMALL), torch.ones(2, 3)
    bench.row("some", "1 token", [lambda: right] * 2, near(right.double()), 1)
    assert timed == [2]
    for wrong in (right + 0.1, right * float("nan"), right[:1]):
        with pytest.raises(ValueError, match=r"^other, 2 tokens: "):
            bench.row("other", "2 tokens", [lambda wrong=wrong: wrong], near(right.double()), 1)
    assert timed == [2]
    assert "other" not in report.write().read_text()


@pytest.mark.parametrize("dtype", [torch.float32, torch.int8], ids=str)
def test_shorter_caches_lie_in_the_same_memory(dtype: torch.dtype) -> None:
    """One after the other, whole and apart, as many as the second-level cache cannot hold."""
    numbers = torch.arange(2 * 2 * 30 * 80, dtype=torch.float32).view(2, 1, 2, 30, 80)
    pair: tuple[Rows, Rows] = (numbers[0], numbers[1])
    if dtype == torch.int8:
        pair = (to_int8(numbers[0]), to_int8(numbers[1]))
    size = 2 * 2 * 8 * row_bytes(80, dtype)
    some = kernel_attention.shorter([pair, pair], 8, dtype, replace(SMALL, l2_bytes=5 * size))
    assert len(some) == 5  # three of the first, the rest of the second
    for keys, values in some:
        assert keys.shape == values.shape == (1, 2, 8, 80)
    flat = pair[1].integers.flatten() if isinstance(pair[1], Int8Rows) else pair[1].flatten()
    its = [one.integers if isinstance(one, Int8Rows) else one for _, one in some]
    assert torch.equal(torch.cat([one.flatten() for one in its[:3]]), flat[: 3 * its[0].numel()])
    assert its[1].data_ptr() == its[0].data_ptr() + its[0].nbytes
    assert all(one.is_contiguous() for one in its)
