"""Experts for few tokens: every (token, slot) pair by itself, weights read as they stream past."""

import triton
import triton.language as tl

from xverse_kernels.triton.dot_kernels import UNIT, dense_dot, packed_dot
from xverse_kernels.triton.linear_kernels import finish_split


@triton.jit
def gate_up_kernel(
    x_ptr, ids_ptr, table_ptr, w_ptr, scale_ptr, h_ptr,
    SLOTS: tl.constexpr, HIDDEN: tl.constexpr, WIDTH: tl.constexpr, BLOCK_BYTES: tl.constexpr,
    BITS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """``h = silu(gate x) * (up x)``: ROWS of the width for one pair a program.

    Grid: pairs, width / ROWS. Pairs of slots without a block leave their h as it was.
    """
    pair, tile = tl.program_id(0), tl.program_id(1)
    if PDL:
        tl.extra.cuda.gdc_wait()
    block = tl.load(table_ptr + tl.load(ids_ptr + pair))
    if block >= 0:
        x_ptr += pair // SLOTS * HIDDEN
        both = tl.arange(0, 2 * ROWS)
        if BITS > 8:
            start = block.to(tl.int64) * (BLOCK_BYTES * 8 // BITS)
            first = tile * ROWS
            # gate and up alternate every 16 rows
            row = first // 16 * 32 + first % 16 + both // ROWS * 16 + both % ROWS
            total = dense_dot(
                tl.zeros((2 * ROWS, BLOCK), tl.float32), x_ptr, x_ptr, w_ptr + start,
                row[:, None], 1.0, HIDDEN, BLOCK, False,
            )  # fmt: skip
            values = tl.sum(total, axis=1)
        else:
            row_bytes: tl.constexpr = HIDDEN * BITS // 8 + HIDDEN // 16
            start = block.to(tl.int64) * (BLOCK_BYTES // 4) + tile * (2 * ROWS * row_bytes // 4)
            words: tl.constexpr = HIDDEN * BITS // 32
            total = packed_dot(
                tl.zeros((BLOCK, 2 * ROWS), tl.float32), x_ptr, x_ptr, w_ptr + start,
                scale_ptr + 2 * start, both[None, :], 0, words, 1.0, HIDDEN, BITS, BLOCK, False,
            )  # fmt: skip
            values = tl.sum(total, axis=0) * (1.0 / UNIT)
        if PDL:
            tl.extra.cuda.gdc_launch_dependents()
        gate, up = tl.split(tl.trans(tl.reshape(values, (2, ROWS))))
        h = gate / (1.0 + tl.exp(-gate)) * up
        out = h_ptr + pair * WIDTH + tile * ROWS + tl.arange(0, ROWS)
        tl.store(out, h.to(h_ptr.dtype.element_ty))


@triton.jit
def down_kernel(
    h_ptr, ids_ptr, slot_weights_ptr, table_ptr, w_ptr, scale_ptr, residual_ptr, out_ptr,
    partial_ptr, counter_ptr,
    SLOTS: tl.constexpr, HIDDEN: tl.constexpr, WIDTH: tl.constexpr, BLOCK_BYTES: tl.constexpr,
    DOWN_BYTES: tl.constexpr, BITS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
    SPLITS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """``out = residual + sum over slots of weight * (down h)``, ROWS of the hidden width a program.

    Grid: tokens, hidden / ROWS, splits of the slots. ``DOWN_BYTES``: where down begins in a block.
    """
    token, tile, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    if PDL:
        tl.extra.cuda.gdc_wait()
    share: tl.constexpr = (SLOTS + SPLITS - 1) // SPLITS
    row = tl.arange(0, ROWS)
    if BITS > 8:
        total = tl.zeros((ROWS, BLOCK), tl.float32)
    else:
        total = tl.zeros((BLOCK, ROWS), tl.float32)
    for slot in range(split * share, tl.minimum(split * share + share, SLOTS)):
        pair = token * SLOTS + slot
        block = tl.load(table_ptr + tl.load(ids_ptr + pair))
        if block >= 0:
            weight = tl.load(slot_weights_ptr + pair).to(tl.float32)
            h = h_ptr + pair * WIDTH
            if BITS > 8:
                start = block.to(tl.int64) * (BLOCK_BYTES * 8 // BITS)
                start += DOWN_BYTES * 8 // BITS + tile * (ROWS * WIDTH)
                total = dense_dot(
                    total, h, h, w_ptr + start, row[:, None], weight, WIDTH, BLOCK, False
                )
            else:
                row_bytes: tl.constexpr = WIDTH * BITS // 8 + WIDTH // 16
                start = block.to(tl.int64) * (BLOCK_BYTES // 4)
                start += DOWN_BYTES // 4 + tile * (ROWS * row_bytes // 4)
                total = packed_dot(
                    total, h, h, w_ptr + start, scale_ptr + 2 * start, row[None, :],
                    0, WIDTH * BITS // 32, weight, WIDTH, BITS, BLOCK, False,
                )  # fmt: skip
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
    if BITS > 8:
        values = tl.sum(total, axis=1)
    else:
        values = tl.sum(total, axis=0) * (1.0 / UNIT)
    is_last = True
    if SPLITS > 1:
        place = token * tl.num_programs(1) + tile
        is_last, values = finish_split(
            values, partial_ptr + place * (SPLITS * ROWS), counter_ptr + place, split, SPLITS, ROWS
        )
    if is_last:
        at = token * HIDDEN + tile * ROWS + row
        values += tl.load(residual_ptr + at).to(tl.float32)
        tl.store(out_ptr + at, values.to(out_ptr.dtype.element_ty))
