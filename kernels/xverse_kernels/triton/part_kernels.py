"""What each slot adds, apart from the others; adding it all up in one order; small copies."""

import triton
import triton.language as tl

from xverse_kernels.triton.dot_kernels import UNIT, dense_dot, packed_dot


@triton.jit
def down_parts_kernel(
    h_ptr, ids_ptr, slot_weights_ptr, table_ptr, w_ptr, scale_ptr, out_ptr,
    HIDDEN: tl.constexpr, WIDTH: tl.constexpr, BLOCK_BYTES: tl.constexpr,
    DOWN_BYTES: tl.constexpr, BITS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """``out = weight * (down h)``, ROWS of the hidden width of one pair a program.

    Grid: pairs, hidden / ROWS. Pairs of slots without a block get zeros and read nothing.
    ``DOWN_BYTES``: where down begins in a block.
    """
    pair, tile = tl.program_id(0), tl.program_id(1)
    if PDL:
        tl.extra.cuda.gdc_wait()
    row = tl.arange(0, ROWS)
    out = out_ptr + pair.to(tl.int64) * HIDDEN + tile * ROWS + row
    block = tl.load(table_ptr + tl.load(ids_ptr + pair))
    if block >= 0:
        h = h_ptr + pair * WIDTH
        if BITS > 8:
            start = block.to(tl.int64) * (BLOCK_BYTES * 8 // BITS)
            start += DOWN_BYTES * 8 // BITS + tile * (ROWS * WIDTH)
            total = dense_dot(
                tl.zeros((ROWS, BLOCK), tl.float32), h, h, w_ptr + start, row[:, None], 1.0,
                WIDTH, BLOCK, False,
            )  # fmt: skip
            values = tl.sum(total, axis=1)
        else:
            row_bytes: tl.constexpr = WIDTH * BITS // 8 + WIDTH // 16
            start = block.to(tl.int64) * (BLOCK_BYTES // 4)
            start += DOWN_BYTES // 4 + tile * (ROWS * row_bytes // 4)
            total = packed_dot(
                tl.zeros((BLOCK, ROWS), tl.float32), h, h, w_ptr + start, scale_ptr + 2 * start,
                row[None, :], 0, WIDTH * BITS // 32, 1.0, WIDTH, BITS, BLOCK, False,
            )  # fmt: skip
            values = tl.sum(total, axis=0) * (1.0 / UNIT)
        weight = tl.load(slot_weights_ptr + pair).to(tl.float32)
        if PDL:
            tl.extra.cuda.gdc_launch_dependents()
        tl.store(out, values * weight)
    else:
        tl.store(out, tl.zeros((ROWS,), tl.float32))


@triton.jit
def add_parts_kernel(
    residual_ptr, ids_ptr, first_ptr, first_table_ptr, second_ptr, second_table_ptr, rest_ptr,
    out_ptr,
    SLOTS: tl.constexpr, HIDDEN: tl.constexpr, BLOCK: tl.constexpr, TABLES: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """``out = residual +`` what each slot adds, in the order of the slots.

    Grid: tokens, hidden / BLOCK. first, second and rest fp32 [T, SLOTS, HIDDEN]: a slot is read
    from the first of TABLES whose table has a block for its expert, else from rest.
    """
    token = tl.program_id(0)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < HIDDEN
    if PDL:
        tl.extra.cuda.gdc_wait()
    at = token.to(tl.int64) * HIDDEN + column
    total = tl.load(residual_ptr + at, mask=inside, other=0.0).to(tl.float32)
    for slot in tl.static_range(SLOTS):
        cell = (token.to(tl.int64) * SLOTS + slot) * HIDDEN + column
        part = tl.zeros((BLOCK,), tl.float32)
        elsewhere = inside
        if TABLES > 0:
            expert = tl.load(ids_ptr + token * SLOTS + slot)
            is_here = tl.load(first_table_ptr + expert) >= 0
            part += tl.load(first_ptr + cell, mask=elsewhere & is_here, other=0.0)
            elsewhere = elsewhere & (is_here == 0)
        if TABLES > 1:
            is_here = tl.load(second_table_ptr + expert) >= 0
            part += tl.load(second_ptr + cell, mask=elsewhere & is_here, other=0.0)
            elsewhere = elsewhere & (is_here == 0)
        part += tl.load(rest_ptr + cell, mask=elsewhere, other=0.0)
        total += part
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
    tl.store(out_ptr + at, total.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _copy(source_ptr, target_ptr, count, at):
    inside = at < count
    values = tl.load(source_ptr + at, mask=inside)
    tl.store(target_ptr + at, values.to(target_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["n0", "n1", "n2", "n3", "n4"])
def copy_small_kernel(
    source0_ptr, source1_ptr, source2_ptr, source3_ptr, source4_ptr,
    target0_ptr, target1_ptr, target2_ptr, target3_ptr, target4_ptr,
    n0, n1, n2, n3, n4,
    COUNT: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """The first COUNT sources to their targets, in the targets' dtypes.

    Grid: most elements / BLOCK.
    """
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    if PDL:
        tl.extra.cuda.gdc_wait()
    _copy(source0_ptr, target0_ptr, n0, at)
    if COUNT > 1:
        _copy(source1_ptr, target1_ptr, n1, at)
    if COUNT > 2:
        _copy(source2_ptr, target2_ptr, n2, at)
    if COUNT > 3:
        _copy(source3_ptr, target3_ptr, n3, at)
    if COUNT > 4:
        _copy(source4_ptr, target4_ptr, n4, at)
