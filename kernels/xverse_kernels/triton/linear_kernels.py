"""Linear layers for one token, or a few: a GEMV that reads every weight once."""

import triton
import triton.language as tl

from xverse_kernels.triton.dot_kernels import (
    UNIT,
    dense_dot,
    packed_dot,
    prefetch,
    scale_place,
    weight_plane,
    word_place,
)


@triton.jit
def inverse_rms(x_ptr, eps, K: tl.constexpr, PADDED: tl.constexpr):
    """1 / sqrt(mean(x^2) + eps) of a vector [K]."""
    at = tl.arange(0, PADDED)
    x = tl.load(x_ptr + at, mask=at < K, other=0.0).to(tl.float32)
    return 1.0 / tl.sqrt(tl.sum(x * x, axis=0) / K + eps)


@triton.jit
def finish_split(values, partial_ptr, counter_ptr, split, SPLITS: tl.constexpr, ROWS: tl.constexpr):
    """Sum what the programs of one tile computed, in the order of their numbers.

    Every program leaves its values; the one that comes last reads them all. Returns whether this
    is that program, and the sum.
    """
    row = tl.arange(0, ROWS)
    tl.store(partial_ptr + split * ROWS + row, values)
    tl.debug_barrier()
    arrived = tl.atomic_add(counter_ptr, 1, sem="acq_rel", scope="gpu")
    is_last = arrived == SPLITS - 1
    if is_last:
        values = tl.zeros((ROWS,), tl.float32)
        for other in tl.static_range(SPLITS):
            values += tl.load(partial_ptr + other * ROWS + row, cache_modifier=".cg")
        tl.store(counter_ptr, 0)
    return is_last, values


@triton.jit
def linear_kernel(
    x_ptr, norm_ptr, w_ptr, scale_ptr, bias_ptr, residual_ptr, out_ptr, partial_ptr, counter_ptr,
    eps, rows_total,
    K: tl.constexpr, K_PADDED: tl.constexpr, BITS: tl.constexpr, ROWS: tl.constexpr,
    BLOCK: tl.constexpr, SPLITS: tl.constexpr,
    HAS_NORM: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """``out = W (norm * x / rms(x)) + bias + residual``, one token and ROWS rows a program.

    Grid: tokens, row tiles, splits of K (1 but for packed matrices with few rows).
    """
    token, tile, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    if PDL:
        # the weights do not depend on the kernel before: fetch them while it finishes
        tile_elements: tl.constexpr = ROWS * K if BITS > 8 else ROWS * (K * BITS // 32 + K // 64)
        if SPLITS == 1:
            prefetch(w_ptr + tile.to(tl.int64) * tile_elements, tile_elements)
        tl.extra.cuda.gdc_wait()
    x_ptr += token * K
    if BITS > 8:
        weights = w_ptr + tile.to(tl.int64) * (ROWS * K)
        total = tl.zeros((ROWS, BLOCK), tl.float32)
        row = tl.arange(0, ROWS)[:, None]
        total = dense_dot(total, x_ptr, norm_ptr, weights, row, 1.0, K, BLOCK, HAS_NORM)
        values = tl.sum(total, axis=1)
    else:
        chunk_words: tl.constexpr = 2 * BITS
        words: tl.constexpr = K * BITS // 32
        share: tl.constexpr = (words + SPLITS * chunk_words - 1) // (SPLITS * chunk_words)
        first = split * (share * chunk_words)
        last = tl.minimum(first + share * chunk_words, words)
        start = tile.to(tl.int64) * (ROWS // 16 * (K * BITS // 2 + K // 4))
        row = tl.arange(0, ROWS)[None, :]
        total = packed_dot(
            tl.zeros((BLOCK, ROWS), tl.float32), x_ptr, norm_ptr, w_ptr + start,
            scale_ptr + 2 * start, row, first, last, 1.0, K, BITS, BLOCK, HAS_NORM,
        )  # fmt: skip
        values = tl.sum(total, axis=0) * (1.0 / UNIT)
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
    if HAS_NORM:
        values *= inverse_rms(x_ptr, eps, K, K_PADDED)
    is_last = True
    if SPLITS > 1:
        mine = token * tl.num_programs(1) + tile
        is_last, values = finish_split(
            values, partial_ptr + mine * (SPLITS * ROWS), counter_ptr + mine, split, SPLITS, ROWS
        )
    if is_last:
        place = tile * ROWS + tl.arange(0, ROWS)
        inside = place < rows_total
        if HAS_BIAS:
            values += tl.load(bias_ptr + place, mask=inside, other=0.0).to(tl.float32)
        if HAS_RESIDUAL:
            at = residual_ptr + token * rows_total + place
            values += tl.load(at, mask=inside, other=0.0).to(tl.float32)
        out = out_ptr + token.to(tl.int64) * rows_total + place
        tl.store(out, values.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def dequantise_kernel(
    w_ptr, scale_ptr, out_ptr, rows_total,
    K: tl.constexpr, BITS: tl.constexpr, WORDS: tl.constexpr,
):  # fmt: skip
    """A packed matrix as a plain one [rows_total, K]: 16 rows, WORDS words a program."""
    per_word: tl.constexpr = 32 // BITS
    block = tl.program_id(0).to(tl.int64)
    word = tl.program_id(1) * WORDS + tl.arange(0, WORDS)[:, None]
    row = tl.arange(0, 16)[None, :]
    inside = word < K // per_word
    start = block * (8 * K * BITS // 16 + K // 4)
    words = tl.load(w_ptr + start + word_place(word, row, K, BITS), mask=inside, other=0)
    scale = tl.load(
        scale_ptr + 2 * start + scale_place(word, row, K, BITS), mask=inside, other=0.0
    ).to(tl.float32)
    if BITS == 4:  # nibbles hold the even columns first
        low = four_columns(words, scale, 0, 4, 1, 5, BITS)
        high = four_columns(words, scale, 2, 6, 3, 7, BITS)
        columns = tl.reshape(tl.permute(tl.join(low, high), (0, 1, 3, 2)), (WORDS, 16, 8))
    else:
        columns = four_columns(words, scale, 0, 1, 2, 3, BITS)
    column = word[:, :, None] * per_word + tl.arange(0, per_word)[None, None, :]
    out_row = block * 16 + row[:, :, None]
    tl.store(
        out_ptr + out_row * K + column,
        columns.to(out_ptr.dtype.element_ty),
        mask=inside[:, :, None] & (out_row < rows_total),
    )


@triton.jit
def four_columns(
    words, scale, a: tl.constexpr, b: tl.constexpr, c: tl.constexpr, d: tl.constexpr,
    BITS: tl.constexpr,
):  # fmt: skip
    """Four of the integers of each word [W, 16], as weights in this order: [W, 16, 4]."""
    first = tl.join(weight_plane(words, scale, a, BITS), weight_plane(words, scale, b, BITS))
    second = tl.join(weight_plane(words, scale, c, BITS), weight_plane(words, scale, d, BITS))
    pairs = tl.permute(tl.join(first, second), (0, 1, 3, 2))
    return tl.reshape(pairs, (words.shape[0], words.shape[1], 4))
