"""Packing, quantisation, and the format as its description says."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from xverse_kernels import reference
from xverse_kernels.packing import (
    BF16,
    FORMATS,
    FP16,
    INT4,
    INT8,
    ExpertLayout,
    WeightFormat,
    dequantise_matrix,
    interleave_rows,
    pack_matrix,
    separate_rows,
    unpack_matrix,
)
from xverse_kernels.quantise import Quantised, quantise
from xverse_kernels.types import SwigluWeights

QUANTISED = [INT4, INT8]
SHAPES = [(16, 32), (16, 64), (48, 96), (1, 160), (100, 128), (32, 1728)]


def gaussian(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def student(*shape: int, seed: int = 0) -> torch.Tensor:
    """Student t with 5 degrees of freedom: a normal over the root of a mean of 5 squares."""
    source = torch.Generator().manual_seed(seed)
    squares = torch.randn(5, *shape, generator=source).pow(2).mean(0)
    return torch.randn(*shape, generator=source) / squares.sqrt()


def relative_error(actual: torch.Tensor, exact: torch.Tensor) -> float:
    return float((actual - exact).norm() / exact.norm())


def decode_by_the_text(data: bytes, rows: int, columns: int, bits: int) -> NDArray[np.float32]:
    """A reader written from docs/format.md alone."""
    matrix = np.zeros((-(-rows // 16) * 16, columns), dtype=np.float32)
    at = 0
    for block in range(matrix.shape[0] // 16):
        first = 0
        while first < columns:
            width = min(64, columns - first)
            q = np.zeros((16, width), dtype=np.int32)
            if bits == 4:
                words = np.frombuffer(data, "<u4", width // 8 * 16, at).reshape(-1, 16)
                at += words.nbytes
                for j in range(width // 8):
                    for i, column in enumerate((0, 2, 4, 6, 1, 3, 5, 7)):
                        q[:, 8 * j + column] = ((words[j] >> (4 * i)) & 15).astype(np.int32) - 8
            else:
                quads = np.frombuffer(data, "u1", width * 16, at).reshape(-1, 16, 4)
                at += quads.nbytes
                for j in range(width // 4):
                    q[:, 4 * j : 4 * j + 4] = quads[j].astype(np.int32) - 128
            scales = np.frombuffer(data, "<f2", width // 32 * 16, at).reshape(-1, 16)
            at += scales.nbytes
            for g in range(width // 32):
                part = q[:, 32 * g : 32 * g + 32].astype(np.float32)
                scaled = part * scales[g].astype(np.float32)[:, None]
                rows_of_block = slice(16 * block, 16 * block + 16)
                matrix[rows_of_block, first + 32 * g : first + 32 * g + 32] = scaled
            first += width
    assert at == len(data)
    return matrix[:rows]


@pytest.mark.parametrize("form", QUANTISED, ids=lambda form: form.name)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_reader_written_from_the_description_agrees(
    form: WeightFormat, shape: tuple[int, int]
) -> None:
    weight = gaussian(*shape)
    packed = pack_matrix(weight, form)
    by_text = decode_by_the_text(packed.numpy().tobytes(), *shape, form.bits)
    ours = dequantise_matrix(packed, *shape, form, torch.float32)
    assert np.array_equal(by_text, ours.numpy())
    assert relative_error(torch.from_numpy(by_text), weight) < (0.1 if form is INT4 else 0.007)


@pytest.mark.parametrize("form", FORMATS.values(), ids=lambda form: form.name)
@pytest.mark.parametrize("shape", SHAPES)
def test_unpacking_gives_back_what_was_packed(form: WeightFormat, shape: tuple[int, int]) -> None:
    weight = gaussian(*shape)
    packed = pack_matrix(weight, form)
    assert packed.dtype == torch.uint8
    assert packed.numel() == form.matrix_bytes(*shape)
    unpacked = unpack_matrix(packed, *shape, form)
    if isinstance(unpacked, Quantised):
        expected = quantise(weight, form.bits)
        assert torch.equal(unpacked.q, expected.q)
        assert torch.equal(unpacked.scales, expected.scales)
    else:
        assert form.dtype is not None
        assert torch.equal(unpacked, weight.to(form.dtype))


def test_sizes_are_those_of_the_description() -> None:
    layout = ExpertLayout(2560, 1728, INT4)
    assert (layout.gate_up_bytes, layout.down_bytes) == (4976640, 2488320)
    assert layout.block_bytes == 7467008
    assert [form.matrix_bytes(16, 64) for form in (INT4, INT8, BF16)] == [576, 1088, 2048]
    assert [form.matrix_bytes(16, 32) for form in (INT4, INT8)] == [288, 544]


@pytest.mark.parametrize("form", FORMATS.values(), ids=lambda form: form.name)
def test_an_expert_block_holds_gate_up_and_down(form: WeightFormat) -> None:
    expert = SwigluWeights(gaussian(96, 160), gaussian(96, 160, seed=1), gaussian(160, 96, seed=2))
    layout = ExpertLayout(160, 96, form)
    block = layout.pack(expert)
    assert block.numel() == layout.block_bytes
    assert layout.block_bytes % 4096 == 0
    assert not block[layout.gate_up_bytes + layout.down_bytes :].any()
    for original, unpacked in zip(expert, layout.unpack(block, torch.float32), strict=True):
        packed_alone = pack_matrix(original, form)
        alone = dequantise_matrix(packed_alone, *original.shape, form, torch.float32)
        assert torch.equal(unpacked, alone)


def test_gate_and_up_alternate_in_blocks_of_16_rows() -> None:
    gate, up = torch.arange(32.0).view(32, 1), torch.arange(100.0, 132.0).view(32, 1)
    joined = interleave_rows(gate, up)
    assert joined.flatten().tolist() == [
        *range(16), *range(100, 116), *range(16, 32), *range(116, 132)
    ]  # fmt: skip
    assert all(torch.equal(a, b) for a, b in zip(separate_rows(joined), (gate, up), strict=True))


@pytest.mark.parametrize("form", QUANTISED, ids=lambda form: form.name)
def test_the_reference_product_on_packed_blocks(form: WeightFormat) -> None:
    hidden, width = 128, 64
    expert = SwigluWeights(
        gaussian(width, hidden) / hidden**0.5,
        gaussian(width, hidden, seed=1) / hidden**0.5,
        gaussian(hidden, width, seed=2) / width**0.5,
    )
    layout = ExpertLayout(hidden, width, form)
    x = gaussian(5, hidden, seed=3)
    actual = reference.swiglu(x, layout.unpack(layout.pack(expert), torch.float32))
    limit = 0.2 if form is INT4 else 0.015  # three matrices' errors add up
    assert relative_error(actual, reference.swiglu(x, expert)) < limit


@pytest.mark.parametrize(
    ("bits", "weights", "limit"),
    [(4, "gaussian", 0.083), (4, "student", 0.105), (8, "gaussian", 0.006), (8, "student", 0.0075)],
)
def test_quantisation_error(bits: int, weights: str, limit: float) -> None:
    make = {"gaussian": gaussian, "student": student}[weights]
    weight = make(512, 2560)
    assert relative_error(quantise(weight, bits).dequantise(), weight) < limit


def test_the_scale_search_beats_plain_rounding() -> None:
    weight = gaussian(256, 2560)
    groups = weight.view(-1, 32)
    extreme = groups.gather(1, groups.abs().argmax(1, keepdim=True))
    plain = (groups / (extreme / -8)).round().clamp(-8, 7) * (extreme / -8)
    searched = quantise(weight, 4).dequantise()
    assert relative_error(searched, weight) < 0.97 * relative_error(plain.view_as(weight), weight)


@pytest.mark.parametrize("bits", [4, 8])
def test_awkward_groups(bits: int) -> None:
    tiny, huge = 1e-30, 60000.0
    rows = [
        torch.zeros(32),
        torch.full((32,), 0.25),
        torch.full((32,), -0.25),
        torch.full((32,), tiny),
        torch.linspace(-huge, huge, 32),
        torch.cat((torch.tensor([1.0]), torch.zeros(31))),
    ]
    weight = torch.stack(rows)
    result = quantise(weight, bits)
    assert result.q.min() >= (-8 if bits == 4 else -127)
    assert result.q.max() <= (7 if bits == 4 else 127)
    back = result.dequantise()
    assert back.isfinite().all()
    assert torch.equal(back[0], torch.zeros(32))
    assert torch.allclose(back[1:3], weight[1:3], rtol=2e-3)
    assert (back[3] - weight[3]).abs().max() <= tiny
    assert relative_error(back[4:5], weight[4:5]) < (0.09 if bits == 4 else 0.006)
    assert torch.allclose(back[5], weight[5], rtol=2e-3)


def test_the_same_bytes_for_any_thread_count_and_dtype_of_the_same_values() -> None:
    weight = gaussian(64, 4096).bfloat16()
    before = torch.get_num_threads()
    packed = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            packed += [pack_matrix(weight, INT4), pack_matrix(weight.float(), INT4)]
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(packed[0], other) for other in packed[1:])


def test_the_bytes_of_known_weights_never_change() -> None:
    """A store made years ago must still be made the same way: a digest, fixed."""
    steps = torch.arange(16 * 96, dtype=torch.float32).view(16, 96)
    weight = ((steps * 37) % 101 - 50) / 64  # exact in fp32, no library's random numbers
    digests = {
        form.name: hashlib.sha256(pack_matrix(weight, form).numpy().tobytes()).hexdigest()[:16]
        for form in FORMATS.values()
    }
    assert digests == EXPECTED_DIGESTS


EXPECTED_DIGESTS = {
    "bf16": "3f04ca2e09cd2886",
    "fp16": "373d5e2b43940279",
    "int8": "a0df4067068eea2f",
    "int4": "053c17eaebbf0070",
}


@pytest.mark.parametrize("form", QUANTISED, ids=lambda form: form.name)
@pytest.mark.parametrize("columns", [1, 31, 33, 48])
def test_widths_that_do_not_divide_are_refused(form: WeightFormat, columns: int) -> None:
    with pytest.raises(ValueError, match=rf"multiples of 32, not {columns}"):
        pack_matrix(torch.zeros(16, columns), form)


def test_expert_widths_that_do_not_divide_are_refused() -> None:
    expert = SwigluWeights(torch.zeros(24, 32), torch.zeros(24, 32), torch.zeros(32, 24))
    with pytest.raises(ValueError, match="multiples of 16, not 24"):
        ExpertLayout(32, 24, FP16).pack(expert)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(value: float) -> None:
    with pytest.raises(ValueError, match="not finite"):
        pack_matrix(torch.full((16, 32), value), INT4)
