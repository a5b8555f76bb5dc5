"""Experts for many tokens: pairs sorted by expert, then matrix products over tiles of one expert.

A pair is a (token, slot). The host knows only how many tiles there can be at most; which expert a
tile belongs to is found out on the device, so nothing waits for it.
"""

import triton
import triton.language as tl

from xverse_kernels.triton.dot_kernels import weight_plane


@triton.jit(do_not_specialize=["pairs"])
def sort_pairs_kernel(
    ids_ptr, table_ptr, order_ptr, counts_ptr, starts_ptr, pairs, CHUNK: tl.constexpr
):
    """Stable counting sort of pairs by expert: one program an expert (grid: experts).

    Pairs whose expert has no block are left out. Writes order int32 [pairs], counts and starts
    int32 [experts].
    """
    expert = tl.program_id(0)
    lower = 0
    mine = 0
    lane = tl.arange(0, CHUNK)
    for start in range(0, pairs, CHUNK):
        inside = start + lane < pairs
        ids = tl.load(ids_ptr + start + lane, mask=inside, other=0)
        here = inside & (tl.load(table_ptr + ids, mask=inside, other=-1) >= 0)
        lower += tl.sum((here & (ids < expert)).to(tl.int32), axis=0)
        mine += tl.sum((here & (ids == expert)).to(tl.int32), axis=0)
    tl.store(counts_ptr + expert, mine)
    tl.store(starts_ptr + expert, lower)
    if mine > 0:
        place = lower
        for start in range(0, pairs, CHUNK):
            inside = start + lane < pairs
            ids = tl.load(ids_ptr + start + lane, mask=inside, other=-1)
            hit = (ids == expert).to(tl.int32)
            rank = tl.cumsum(hit, axis=0) - hit
            tl.store(order_ptr + place + rank, start + lane, mask=hit > 0)
            place += tl.sum(hit, axis=0)


@triton.jit
def find_tile(
    counts_ptr, starts_ptr, tile, EXPERTS: tl.constexpr, PADDED: tl.constexpr, ROWS: tl.constexpr
):
    """Which expert a tile of ROWS sorted pairs belongs to, its first pair and how many it has.

    No pairs: a tile beyond the last.
    """
    expert = tl.arange(0, PADDED)
    counts = tl.load(counts_ptr + expert, mask=expert < EXPERTS, other=0)
    tiles = (counts + ROWS - 1) // ROWS
    ends = tl.cumsum(tiles, axis=0)
    mine = tl.sum((ends <= tile).to(tl.int32), axis=0)
    is_mine = expert == mine
    done = (tile - tl.sum(tl.where(is_mine, ends - tiles, 0), axis=0)) * ROWS
    left = tl.minimum(tl.sum(tl.where(is_mine, counts, 0), axis=0) - done, ROWS)
    start = tl.load(starts_ptr + mine, mask=mine < EXPERTS, other=0) + done
    return mine, start, tl.where(mine < EXPERTS, left, 0)


@triton.jit
def tile_product(
    acc, x_ptr, x_rows, row_ok, w_ptr, scale_ptr, w_row,
    K: tl.constexpr, K_PADDED: tl.constexpr, BITS: tl.constexpr, BLOCK_K: tl.constexpr,
    DOT: tl.constexpr,
):  # fmt: skip
    """acc + x W^T for a tile of rows of x and a tile of rows of W, fp32 [rows of x, rows of W].

    Args:
        x_ptr: activations with a row pitch of K_PADDED; of packed weights in plane order.
        x_rows: int64 [M] rows of x; row_ok: which of them exist.
        w_ptr: the matrix; scale_ptr: for packed weights, the same place as fp16.
        w_row: int32 [N] rows of it.
        DOT: dtype of the products.
    """
    if BITS > 8:
        k = tl.arange(0, BLOCK_K)
        for start in range(0, K, BLOCK_K):
            inside = start + k < K
            x = tl.load(
                x_ptr + x_rows[:, None] * K_PADDED + start + k[None, :],
                mask=row_ok[:, None] & inside[None, :], other=0.0,
            )  # fmt: skip
            w = tl.load(
                w_ptr + w_row[:, None] * K + start + k[None, :], mask=inside[None, :], other=0.0
            )
            acc = tl.dot(x.to(DOT), tl.trans(w.to(DOT)), acc)
    else:
        per_word: tl.constexpr = 32 // BITS
        chunk_words: tl.constexpr = 2 * BITS
        words_total: tl.constexpr = K // per_word
        block_pitch: tl.constexpr = K * BITS // 2 + K // 4
        chunk_pitch: tl.constexpr = (16 * 64 * BITS // 8 + 64) // 4
        lane = tl.arange(0, 16)
        w_base = w_row // 16 * block_pitch + w_row % 16
        for start in range(0, words_total, 16):
            word = start + lane
            inside = word < words_total
            chunk = word // chunk_words
            at = chunk * chunk_pitch + word % chunk_words * 16
            words = tl.load(
                w_ptr + w_base[None, :] + at[:, None], mask=inside[:, None], other=0
            )  # fmt: skip
            integers = chunk_words * 32
            if K % 64 != 0:
                integers = tl.where(chunk == K // 64, BITS * 32, integers)
            scale_at = chunk * (2 * chunk_pitch) + integers + word % chunk_words // BITS * 16
            scale_base = w_row // 16 * (2 * block_pitch) + w_row % 16
            scale = tl.load(
                scale_ptr + scale_base[None, :] + scale_at[:, None], mask=inside[:, None], other=0.0
            ).to(tl.float32)
            for i in tl.static_range(per_word):
                x = tl.load(
                    x_ptr + x_rows[:, None] * K_PADDED + start * per_word + i * 16 + lane[None, :],
                    mask=row_ok[:, None], other=0.0,
                )  # fmt: skip
                w = weight_plane(words, scale, i, BITS)
                acc = tl.dot(x.to(DOT), w.to(DOT), acc)
    return acc


@triton.jit
def grouped_gate_up_kernel(
    x_ptr, order_ptr, counts_ptr, starts_ptr, table_ptr, w_ptr, scale_ptr, h_ptr,
    EXPERTS: tl.constexpr, EXPERTS_PADDED: tl.constexpr, SLOTS: tl.constexpr,
    HIDDEN: tl.constexpr, HIDDEN_PADDED: tl.constexpr, WIDTH: tl.constexpr,
    WIDTH_PADDED: tl.constexpr, BLOCK_BYTES: tl.constexpr, BITS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """h of BLOCK_M sorted pairs, BLOCK_N of the width; h is in the order of the sorted pairs.

    Grid: tiles of the width (fast), tiles of pairs. Row pitches: x HIDDEN_PADDED, h WIDTH_PADDED.
    """
    n_tiles: tl.constexpr = (WIDTH + BLOCK_N - 1) // BLOCK_N
    tile, part = tl.program_id(0) // n_tiles, tl.program_id(0) % n_tiles
    expert, first, count = find_tile(counts_ptr, starts_ptr, tile, EXPERTS, EXPERTS_PADDED, BLOCK_M)
    if count > 0:
        lane = tl.arange(0, BLOCK_M)
        row_ok = lane < count
        pair = tl.load(order_ptr + first + lane, mask=row_ok, other=0)
        rows = (pair // SLOTS).to(tl.int64)
        block = tl.load(table_ptr + expert).to(tl.int64)
        w_ptr += block * (BLOCK_BYTES * 8 // (BITS if BITS > 8 else 32))
        scale_ptr += block * (BLOCK_BYTES // 2)
        # gate and up alternate every 16 rows: a tile of both is one stretch of rows
        both = part * (2 * BLOCK_N) + tl.arange(0, 2 * BLOCK_N)
        if WIDTH % BLOCK_N != 0:
            both = tl.where(both < 2 * WIDTH, both, 0)
        acc = tl.zeros((BLOCK_M, 2 * BLOCK_N), tl.float32)
        acc = tile_product(
            acc, x_ptr, rows, row_ok, w_ptr, scale_ptr, both, HIDDEN, HIDDEN_PADDED, BITS,
            BLOCK_K, DOT,
        )  # fmt: skip
        acc = tl.reshape(acc, (BLOCK_M, BLOCK_N // 16, 2, 16))
        gate, up = tl.split(tl.permute(acc, (0, 1, 3, 2)))
        h = tl.reshape(gate / (1.0 + tl.exp(-gate)) * up, (BLOCK_M, BLOCK_N))
        column = part * BLOCK_N + tl.arange(0, BLOCK_N)
        place = column
        if BITS <= 8:
            place = plane_place(column, BITS)
        at = h_ptr + (first + lane).to(tl.int64)[:, None] * WIDTH_PADDED + place[None, :]
        inside = row_ok[:, None] & (column < WIDTH)[None, :]
        tl.store(at, h.to(h_ptr.dtype.element_ty), mask=inside)


@triton.jit
def plane_place(column, BITS: tl.constexpr):
    """Where a column stands in plane order: per 16 words, first all their first integers, ..."""
    per_word: tl.constexpr = 32 // BITS
    chunk: tl.constexpr = 16 * per_word
    inner = column % per_word
    plane = inner
    if BITS == 4:
        plane = inner // 2 + inner % 2 * 4
    return column // chunk * chunk + plane * 16 + column % chunk // per_word


@triton.jit
def grouped_down_kernel(
    h_ptr, order_ptr, counts_ptr, starts_ptr, table_ptr, w_ptr, scale_ptr, out_ptr,
    EXPERTS: tl.constexpr, EXPERTS_PADDED: tl.constexpr,
    HIDDEN: tl.constexpr, WIDTH: tl.constexpr, WIDTH_PADDED: tl.constexpr,
    BLOCK_BYTES: tl.constexpr, DOWN_BYTES: tl.constexpr, BITS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """What each of BLOCK_M sorted pairs adds, before weighting: out [pairs, HIDDEN], unsorted."""
    n_tiles: tl.constexpr = (HIDDEN + BLOCK_N - 1) // BLOCK_N
    tile, part = tl.program_id(0) // n_tiles, tl.program_id(0) % n_tiles
    expert, first, count = find_tile(counts_ptr, starts_ptr, tile, EXPERTS, EXPERTS_PADDED, BLOCK_M)
    if count > 0:
        lane = tl.arange(0, BLOCK_M)
        row_ok = lane < count
        pair = tl.load(order_ptr + first + lane, mask=row_ok, other=0).to(tl.int64)
        block = tl.load(table_ptr + expert).to(tl.int64)
        element_bits: tl.constexpr = BITS if BITS > 8 else 32
        w_ptr += block * (BLOCK_BYTES * 8 // element_bits) + DOWN_BYTES * 8 // element_bits
        scale_ptr += block * (BLOCK_BYTES // 2) + DOWN_BYTES // 2
        column = part * BLOCK_N + tl.arange(0, BLOCK_N)
        w_row = column
        if HIDDEN % BLOCK_N != 0:
            w_row = tl.where(column < HIDDEN, column, 0)
        acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        acc = tile_product(
            acc, h_ptr, (first + lane).to(tl.int64), row_ok, w_ptr, scale_ptr, w_row, WIDTH,
            WIDTH_PADDED, BITS, BLOCK_K, DOT,
        )  # fmt: skip
        at = out_ptr + pair[:, None] * HIDDEN + column[None, :]
        inside = row_ok[:, None] & (column < HIDDEN)[None, :]
        tl.store(at, acc.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def combine_kernel(
    parts_ptr, ids_ptr, slot_weights_ptr, table_ptr, residual_ptr, out_ptr,
    SLOTS: tl.constexpr, HIDDEN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """``out = residual + sum over slots of weight * part``, in the order of the slots.

    Grid: tokens, hidden / BLOCK. parts [T * SLOTS, HIDDEN]; slots without a block are not read.
    """
    token = tl.program_id(0)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < HIDDEN
    at = token.to(tl.int64) * HIDDEN + column
    total = tl.load(residual_ptr + at, mask=inside, other=0.0).to(tl.float32)
    for slot in tl.static_range(SLOTS):
        pair = token * SLOTS + slot
        resident = tl.load(table_ptr + tl.load(ids_ptr + pair)) >= 0
        weight = tl.load(slot_weights_ptr + pair).to(tl.float32)
        cell = parts_ptr + pair.to(tl.int64) * HIDDEN + column
        total += weight * tl.load(cell, mask=inside & resident, other=0.0).to(tl.float32)
    tl.store(out_ptr + at, total.to(out_ptr.dtype.element_ty), mask=inside)
