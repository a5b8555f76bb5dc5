"""The byte layout of weights: matrices in chunks, and experts as one block of bytes each.

The layout is described byte for byte, for readers without this code, in ``docs/format.md``. In
short: rows are taken 16 at a time; bf16 and fp16 rows lie one after the other; int8 and int4 row
blocks are cut into chunks of 64 columns (32 at the end of an odd width), in each of which the
integers come first and the fp16 scales after them. An expert is its gate and up matrices, whose
row blocks alternate, followed by its down matrix, padded to 4096 bytes.

All functions work on the CPU, on little-endian machines.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

import torch
from torch import Tensor

from xverse_kernels.quantise import GROUP, Quantised, quantise
from xverse_kernels.types import SwigluWeights

ROWS = 16  # in a row block
CHUNK_COLUMNS = 64
WORD_COLUMNS = 8  # int4 columns in a 32-bit word
BYTE_COLUMNS = 4  # int8 columns that lie side by side
BLOCK_ALIGNMENT = 4096
# Nibble i of a word (bits 4i to 4i+3) belongs to column NIBBLE_COLUMN[i] of its eight: masking
# with 0x000F000F after a shift then gives two neighbouring columns at once.
NIBBLE_COLUMN = (0, 2, 4, 6, 1, 3, 5, 7)


@dataclass(frozen=True)
class WeightFormat:
    """How weights are stored; ``bits`` of an integer and its scales, or a float ``dtype``."""

    name: str
    bits: int
    dtype: torch.dtype | None = None

    @property
    def is_quantised(self) -> bool:
        return self.dtype is None

    def matrix_bytes(self, rows: int, columns: int) -> int:
        """Bytes of a packed matrix; rows are padded to a multiple of 16.

        Raises:
            ValueError: columns that the format cannot hold.
        """
        padded = -(-rows // ROWS) * ROWS
        if not self.is_quantised:
            return padded * columns * self.bits // 8
        if columns % GROUP:
            raise ValueError(
                f"{self.name} needs widths that are multiples of {GROUP}, not {columns}"
            )
        return padded * (columns * self.bits // 8 + columns // GROUP * 2)


BF16 = WeightFormat("bf16", 16, torch.bfloat16)
FP16 = WeightFormat("fp16", 16, torch.float16)
INT8 = WeightFormat("int8", 8)
INT4 = WeightFormat("int4", 4)
FORMATS = {one.name: one for one in (BF16, FP16, INT8, INT4)}


def pack_matrix(weight: Tensor, form: WeightFormat) -> Tensor:
    """Pack [N, K] of any float dtype into uint8 [bytes].

    Raises:
        ValueError: a width that the format cannot hold, or weights that are not finite.
    """
    rows, columns = weight.shape
    form.matrix_bytes(rows, columns)  # refuses impossible widths
    missing = -rows % ROWS
    if missing:
        weight = torch.cat((weight, weight.new_zeros(missing, columns)))
    if form.dtype is not None:
        return weight.to(form.dtype).contiguous().view(torch.uint8).flatten()
    return _pack_quantised(quantise(weight, form.bits), form)


def unpack_matrix(data: Tensor, rows: int, columns: int, form: WeightFormat) -> Quantised | Tensor:
    """The inverse of `pack_matrix`: integers and scales, or the float matrix [rows, columns]."""
    padded = -(-rows // ROWS) * ROWS
    if form.dtype is not None:
        return data.view(form.dtype).view(padded, columns)[:rows]
    unpacked = _unpack_quantised(data, padded, columns, form)
    return Quantised(unpacked.q[:rows], unpacked.scales[:rows])


def dequantise_matrix(
    data: Tensor, rows: int, columns: int, form: WeightFormat, dtype: torch.dtype
) -> Tensor:
    """The matrix [rows, columns] that packed bytes stand for, rounded to ``dtype``."""
    unpacked = unpack_matrix(data, rows, columns, form)
    return (unpacked.dequantise() if isinstance(unpacked, Quantised) else unpacked).to(dtype)


@dataclass(frozen=True)
class PackedMatrix:
    """A packed matrix [rows, columns] that linear layers take in place of a tensor."""

    data: Tensor  # uint8
    rows: int
    columns: int
    form: WeightFormat

    def row_slice(self, first: int, last: int) -> PackedMatrix:
        """Rows ``first`` (a multiple of 16) to ``last``, in the same memory."""
        assert first % ROWS == 0
        pitch = self.form.matrix_bytes(ROWS, self.columns) // ROWS
        end = -(-last // ROWS) * ROWS
        return PackedMatrix(
            self.data[first * pitch : end * pitch], last - first, self.columns, self.form
        )

    def to_dense(self, dtype: torch.dtype) -> Tensor:
        """[rows, columns] in ``dtype``."""
        return dequantise_matrix(self.data, self.rows, self.columns, self.form, dtype)


@dataclass(frozen=True)
class ExpertLayout:
    """Sizes of one expert's block: ``hidden`` H, ``width`` I."""

    hidden: int
    width: int
    form: WeightFormat

    @property
    def gate_up_bytes(self) -> int:
        return self.form.matrix_bytes(2 * self.width, self.hidden)

    @property
    def down_bytes(self) -> int:
        return self.form.matrix_bytes(self.hidden, self.width)

    @property
    def block_bytes(self) -> int:
        """Bytes from one expert to the next."""
        used = self.gate_up_bytes + self.down_bytes
        return -(-used // BLOCK_ALIGNMENT) * BLOCK_ALIGNMENT

    def pack(self, expert: SwigluWeights) -> Tensor:
        """uint8 [block_bytes].

        Raises:
            ValueError: an expert width that is no multiple of 16 (gate and up alternate in row
                blocks), or what `pack_matrix` refuses.
        """
        if self.width % ROWS:
            raise ValueError(f"expert widths must be multiples of {ROWS}, not {self.width}")
        block = torch.zeros(self.block_bytes, dtype=torch.uint8)
        gate_up = interleave_rows(expert.gate, expert.up)
        block[: self.gate_up_bytes] = pack_matrix(gate_up, self.form)
        end = self.gate_up_bytes + self.down_bytes
        block[self.gate_up_bytes : end] = pack_matrix(expert.down, self.form)
        return block

    def unpack(self, block: Tensor, dtype: torch.dtype) -> SwigluWeights:
        """Gate, up and down of a block uint8 [block_bytes], dequantised to ``dtype``."""
        gate_up = dequantise_matrix(
            block[: self.gate_up_bytes], 2 * self.width, self.hidden, self.form, dtype
        )
        end = self.gate_up_bytes + self.down_bytes
        down = dequantise_matrix(
            block[self.gate_up_bytes : end], self.hidden, self.width, self.form, dtype
        )
        gate, up = separate_rows(gate_up)
        return SwigluWeights(gate, up, down)


def interleave_rows(gate: Tensor, up: Tensor) -> Tensor:
    """[I, H] twice to [2I, H]: 16 rows of gate, 16 of up, and so on."""
    columns = gate.shape[1]
    pairs = torch.stack((gate.reshape(-1, ROWS, columns), up.reshape(-1, ROWS, columns)), dim=1)
    return pairs.view(-1, columns)


def separate_rows(gate_up: Tensor) -> tuple[Tensor, Tensor]:
    """The inverse of `interleave_rows`."""
    columns = gate_up.shape[1]
    pairs = gate_up.reshape(-1, 2, ROWS, columns)
    return pairs[:, 0].reshape(-1, columns), pairs[:, 1].reshape(-1, columns)


def _chunk_spans(columns: int) -> list[tuple[int, int, int]]:
    """(first column, chunks, columns a chunk) of the full chunks and of the half one after."""
    full = columns // CHUNK_COLUMNS
    spans = [(0, full, CHUNK_COLUMNS)] if full else []
    if columns % CHUNK_COLUMNS:
        spans.append((full * CHUNK_COLUMNS, 1, columns % CHUNK_COLUMNS))
    return spans


def _pack_quantised(matrix: Quantised, form: WeightFormat) -> Tensor:
    rows, columns = matrix.q.shape
    blocks = rows // ROWS
    parts: list[Tensor] = []
    for first, chunks, width in _chunk_spans(columns):
        q = matrix.q[:, first : first + chunks * width]
        q = q.view(blocks, ROWS, chunks, width).permute(0, 2, 3, 1)  # [block, chunk, k, row]
        groups = slice(first // GROUP, (first + chunks * width) // GROUP)
        scales = matrix.scales[:, groups].reshape(blocks, ROWS, chunks, width // GROUP)
        integers = _nibble_words(q) if form.bits == 4 else _byte_quads(q)
        scale_bytes = scales.permute(0, 2, 3, 1).contiguous().view(torch.uint8)
        chunk_parts = (integers.flatten(2), scale_bytes.flatten(2))
        parts.append(torch.cat(chunk_parts, dim=2).flatten(1))
    return torch.cat(parts, dim=1).flatten()


def _nibble_words(q: Tensor) -> Tensor:
    """int8 [block, chunk, k, row] to uint8 of little-endian words [block, chunk, k / 8, row]."""
    blocks, chunks, _, rows = q.shape
    unsigned = (q.to(torch.int32) + 8).reshape(blocks, chunks, -1, WORD_COLUMNS, rows)
    words = torch.zeros_like(unsigned[:, :, :, 0])
    for nibble, column in enumerate(NIBBLE_COLUMN):
        words |= unsigned[:, :, :, column] << (4 * nibble)
    return words.contiguous().view(torch.uint8)


def _byte_quads(q: Tensor) -> Tensor:
    """int8 [block, chunk, k, row] to uint8 [block, chunk, k / 4, row, 4]."""
    blocks, chunks, _, rows = q.shape
    unsigned = (q.to(torch.int16) + 128).to(torch.uint8)
    quads = unsigned.reshape(blocks, chunks, -1, BYTE_COLUMNS, rows)
    return quads.transpose(3, 4).contiguous()


def _unpack_quantised(data: Tensor, rows: int, columns: int, form: WeightFormat) -> Quantised:
    blocks = rows // ROWS
    q = torch.empty(rows, columns, dtype=torch.int8)
    scales = torch.empty(rows, columns // GROUP, dtype=torch.float16)
    by_block = data.view(blocks, -1)
    offset = 0
    for first, chunks, width in _chunk_spans(columns):
        integer_bytes = ROWS * width * form.bits // 8
        scale_bytes = ROWS * width // GROUP * 2
        size = chunks * (integer_bytes + scale_bytes)
        span = by_block[:, offset : offset + size].reshape(blocks, chunks, -1)
        offset += size
        read = _read_nibble_words if form.bits == 4 else _read_byte_quads
        integers = read(span[:, :, :integer_bytes].contiguous())  # [block, chunk, k, row]
        end = first + chunks * width
        q[:, first:end] = integers.permute(0, 3, 1, 2).reshape(rows, -1)
        halves = span[:, :, integer_bytes:].contiguous().view(torch.float16)
        halves = halves.view(blocks, chunks, -1, ROWS).permute(0, 3, 1, 2)
        scales[:, first // GROUP : end // GROUP] = halves.reshape(rows, -1)
    return Quantised(q, scales)


def _read_nibble_words(data: Tensor) -> Tensor:
    blocks, chunks, _ = data.shape
    words = data.view(torch.int32).view(blocks, chunks, -1, ROWS)  # [block, chunk, k / 8, row]
    q = torch.empty(*words.shape[:3], WORD_COLUMNS, ROWS, dtype=torch.int8)
    for nibble, column in enumerate(NIBBLE_COLUMN):
        q[:, :, :, column] = ((words >> (4 * nibble)) & 0xF).to(torch.int8) - 8
    return q.flatten(2, 3)


def _read_byte_quads(data: Tensor) -> Tensor:
    blocks, chunks, _ = data.shape
    quads = data.view(blocks, chunks, -1, ROWS, BYTE_COLUMNS).transpose(3, 4).flatten(2, 3)
    return (quads.to(torch.int16) - 128).to(torch.int8)


class ExpertBlocks(Sequence[SwigluWeights]):
    """The experts of one layer as packed blocks; an expert is unpacked when it is asked for.

    ``table`` int32 [experts] says which block an expert is, -1 for one that is not there.
    """

    def __init__(
        self,
        blocks: Tensor,
        layout: ExpertLayout,
        dtype: torch.dtype,
        table: Tensor | None = None,
    ) -> None:
        """``blocks`` uint8 [blocks, block_bytes]; experts come out in ``dtype``.

        Without a table, block and expert have the same number.
        """
        self.blocks = blocks
        self.layout = layout
        self._dtype = dtype
        if table is None:
            table = torch.arange(blocks.shape[0], dtype=torch.int32, device=blocks.device)
        self.table = table

    def like(self, blocks: Tensor, table: Tensor) -> ExpertBlocks:
        """Other blocks of the same layout."""
        return ExpertBlocks(blocks, self.layout, self._dtype, table)

    def __len__(self) -> int:
        return self.table.shape[0]

    def has(self, index: int) -> bool:
        """Whether an expert has a block here."""
        return int(self.table[index]) >= 0

    @overload
    def __getitem__(self, index: int) -> SwigluWeights: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[SwigluWeights]: ...

    def __getitem__(self, index: int | slice) -> SwigluWeights | Sequence[SwigluWeights]:
        if isinstance(index, slice):
            return ExpertBlocks(self.blocks, self.layout, self._dtype, self.table[index])
        block = int(self.table[index])
        if block < 0:
            raise LookupError(f"expert {index} has no block here")
        return self.layout.unpack(self.blocks[block], self._dtype)
