"""Attention for many new tokens of one sequence over a cached past: flash attention (Dao 2023)."""

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def load_part(base, row, row_ok, first: tl.constexpr, SIZE: tl.constexpr, DIM: tl.constexpr):
    """Columns first to first + SIZE of some rows of a matrix with DIM columns."""
    column = first + tl.arange(0, SIZE)
    at = base + row.to(tl.int64)[:, None] * DIM + column[None, :]
    return tl.load(at, mask=row_ok[:, None] & (column < DIM)[None, :], other=0.0)


@triton.jit(do_not_specialize=["sequence", "past", "tokens", "capacity"])
def prefill_attention_kernel(
    q_ptr, k_ptr, v_ptr, k_scale_ptr, v_scale_ptr, out_ptr, sequence, past, tokens, capacity,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, DIM: tl.constexpr, WIDE: tl.constexpr,
    NARROW: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, INT8: tl.constexpr,
    DOT: tl.constexpr,
):  # fmt: skip
    """BLOCK_M tokens of one head. Grid: tokens / BLOCK_M, heads.

    A head of 80 is taken as WIDE 64 and NARROW 16 columns rather than padded to 128.
    q [HEADS, T, DIM], rotated; caches [sequences, KV_HEADS, capacity, DIM] with the new tokens in
    them, with INT8 their scales fp16 [sequences, KV_HEADS, capacity]; out [T, HEADS * DIM].
    """
    # the last tokens see most positions: they begin first
    tile = tl.num_programs(0) - 1 - tl.program_id(0)
    head = tl.program_id(1)
    row = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    row_ok = row < tokens
    q_base = q_ptr + head.to(tl.int64) * tokens * DIM
    line = (sequence.to(tl.int64) * KV_HEADS + head // (HEADS // KV_HEADS)) * capacity
    kv = line * DIM
    q = load_part(q_base, row, row_ok, 0, WIDE, DIM).to(DOT)
    top = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    mixed = tl.zeros((BLOCK_M, WIDE), tl.float32)
    if NARROW > 0:
        q_rest = load_part(q_base, row, row_ok, WIDE, NARROW, DIM).to(DOT)
        rest = tl.zeros((BLOCK_M, NARROW), tl.float32)
    scale = LOG2_E / tl.sqrt(DIM * 1.0)
    seen_by_all = past + tile * BLOCK_M + 1  # positions that every row of the tile may see
    length = tl.minimum(past + tile * BLOCK_M + BLOCK_M, past + tokens)
    for start in range(0, length, BLOCK_N):
        place = start + tl.arange(0, BLOCK_N)
        place_ok = place < length
        k = load_part(k_ptr + kv, place, place_ok, 0, WIDE, DIM).to(DOT)
        scores = tl.dot(q, tl.trans(k))
        if NARROW > 0:
            k_rest = load_part(k_ptr + kv, place, place_ok, WIDE, NARROW, DIM).to(DOT)
            scores = tl.dot(q_rest, tl.trans(k_rest), scores)
        if INT8:
            steps = tl.load(k_scale_ptr + line + place, mask=place_ok, other=0.0).to(tl.float32)
            scores *= (steps * scale)[None, :]
        else:
            scores *= scale
        if start + BLOCK_N > seen_by_all:
            future = place[None, :] > past + row[:, None]
            scores = tl.where(future, float("-inf"), scores)
        higher = tl.maximum(top, tl.max(scores, axis=1))
        shrink = tl.exp2(top - higher)
        p = tl.exp2(scores - higher[:, None])
        total = total * shrink + tl.sum(p, axis=1)
        if INT8:
            steps = tl.load(v_scale_ptr + line + place, mask=place_ok, other=0.0).to(tl.float32)
            p *= steps[None, :]
        p = p.to(DOT)
        v = load_part(v_ptr + kv, place, place_ok, 0, WIDE, DIM).to(DOT)
        mixed = tl.dot(p, v, mixed * shrink[:, None])
        if NARROW > 0:
            v_rest = load_part(v_ptr + kv, place, place_ok, WIDE, NARROW, DIM).to(DOT)
            rest = tl.dot(p, v_rest, rest * shrink[:, None])
        top = higher
    out = out_ptr + row.to(tl.int64)[:, None] * (HEADS * DIM) + head * DIM
    column = tl.arange(0, WIDE)[None, :]
    inside = row_ok[:, None] & (column < DIM)
    tl.store(out + column, (mixed / total[:, None]).to(out_ptr.dtype.element_ty), mask=inside)
    if NARROW > 0:
        column = WIDE + tl.arange(0, NARROW)[None, :]
        inside = row_ok[:, None] & (column < DIM)
        tl.store(out + column, (rest / total[:, None]).to(out_ptr.dtype.element_ty), mask=inside)
