"""Attention for single new tokens: rotation, cache write and split-KV attention in one launch."""

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
LOWEST = tl.constexpr(-1e30)  # a score below all others, finite so that differences are numbers


@triton.jit
def rotated(row_ptr, cos, sin, column, inside, DIM: tl.constexpr):
    """A head's vector in the half-rotation form of the rotary embedding, fp32."""
    half: tl.constexpr = DIM // 2
    partner = tl.where(column < half, column + half, column - half)
    x = tl.load(row_ptr + column, mask=inside, other=0.0).to(tl.float32)
    other = tl.load(row_ptr + partner, mask=inside, other=0.0).to(tl.float32)
    return x * cos + tl.where(column < half, -other, other) * sin


@triton.jit
def in_steps(x, axis: tl.constexpr):
    """Vectors along an axis as integers and the fp16 scales of them, both fp32, as `to_int8` makes
    them: one that holds NaN or infinity gets the scale NaN."""
    largest = tl.max(tl.abs(x), axis=axis, keep_dims=True)
    scale = (largest / 127.0 + tl.sum(x * 0.0, axis=axis, keep_dims=True)).to(tl.float16)
    scale = scale.to(tl.float32)
    usable = (scale > 0) & (scale <= 65504.0)
    q = tl.where(usable, x * (1.0 / tl.where(usable, scale, 1.0)), 0.0)
    q = tl.minimum(tl.maximum(q, -127.0), 127.0)
    return (q + 12582912.0) - 12582912.0, scale  # to the nearest integer, ties to even


@triton.jit(do_not_specialize=["capacity"])
def decode_attention_kernel(
    qkv_ptr, positions_ptr, sequences_ptr, cos_ptr, sin_ptr, k_ptr, v_ptr, k_scale_ptr,
    v_scale_ptr, out_ptr, partial_ptr, counter_ptr, capacity,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, DIM: tl.constexpr, DIM_PADDED: tl.constexpr,
    BLOCK: tl.constexpr, SPLITS: tl.constexpr, INT8: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One token of one sequence, one query head, a part of its past.

    Grid: tokens, heads, splits. Each token is the newest of its own sequence: its key and value are
    rotated, written to the cache and used by split 0; all splits read the positions before it.
    Every lane of a block keeps its own running softmax, so that the loop has no reduction over
    positions. The last split to finish joins them all, in the order of their numbers.

    qkv [T, (HEADS + 2 KV_HEADS) * DIM]; positions, sequences int32 [T]; cos, sin fp32
    [positions, DIM]; caches [sequences, KV_HEADS, capacity, DIM], with INT8 their scales fp16
    [sequences, KV_HEADS, capacity]; out [T, HEADS * DIM].
    """
    token, head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    group: tl.constexpr = HEADS // KV_HEADS
    kv_head = head // group
    position = tl.load(positions_ptr + token)
    sequence = tl.load(sequences_ptr + token).to(tl.int64)
    column = tl.arange(0, DIM_PADDED)
    inside = column < DIM
    cos = tl.load(cos_ptr + position * DIM + column, mask=inside, other=0.0)
    sin = tl.load(sin_ptr + position * DIM + column, mask=inside, other=0.0)
    row = qkv_ptr + token * ((HEADS + 2 * KV_HEADS) * DIM)
    q = rotated(row + head * DIM, cos, sin, column, inside, DIM)
    q *= LOG2_E / tl.sqrt(DIM * 1.0)

    cache_row = (sequence * KV_HEADS + kv_head) * capacity
    share = (position + SPLITS * BLOCK - 1) // (SPLITS * BLOCK) * BLOCK
    first = split * share
    last = tl.minimum(first + share, position)
    lane = tl.arange(0, BLOCK)[:, None]
    columns = column[None, :]
    query = q[None, :]
    # lanes by one, so that nothing moves between threads but the sum over a row
    highest = tl.full((BLOCK, 1), LOWEST, tl.float32)
    weight = tl.zeros((BLOCK, 1), tl.float32)
    mixed = tl.zeros((BLOCK, DIM_PADDED), tl.float32)
    place = (cache_row + first + lane) * DIM + columns
    if INT8:
        k_steps = k_scale_ptr + cache_row + first + lane
        v_steps = v_scale_ptr + cache_row + first + lane
    for start in range(first, last, BLOCK):
        valid = start + lane < last
        readable = valid & (columns < DIM)
        k = tl.load(k_ptr + place, mask=readable, other=0.0).to(tl.float32)
        v = tl.load(v_ptr + place, mask=readable, other=0.0).to(tl.float32)
        scores = tl.sum(query * k, axis=1, keep_dims=True)
        if INT8:
            scores *= tl.load(k_steps, mask=valid, other=0.0).to(tl.float32)
        scores = tl.where(valid, scores, LOWEST)
        higher = tl.maximum(highest, scores)
        shrink = tl.exp2(highest - higher)
        p = tl.where(valid, tl.exp2(scores - higher), 0.0)
        weight = weight * shrink + p
        if INT8:
            p *= tl.load(v_steps, mask=valid, other=0.0).to(tl.float32)
            k_steps += BLOCK
            v_steps += BLOCK
        mixed = mixed * shrink + p * v
        highest = higher
        place += BLOCK * DIM

    top = tl.max(highest)
    newest = LOWEST
    value = tl.zeros((DIM_PADDED,), tl.float32)
    if split == 0:
        key = rotated(row + (HEADS + kv_head) * DIM, cos, sin, column, inside, DIM)
        value = tl.load(row + (HEADS + KV_HEADS + kv_head) * DIM + column, mask=inside, other=0.0)
        newest_row = (cache_row + position) * DIM + column
        if INT8:
            key, k_scale = in_steps(key, 0)
            value, v_scale = in_steps(value.to(tl.float32), 0)
            if head % group == 0:
                one = cache_row + position + tl.arange(0, 1)
                tl.store(k_scale_ptr + one, k_scale.to(tl.float16))
                tl.store(v_scale_ptr + one, v_scale.to(tl.float16))
        key = key.to(k_ptr.dtype.element_ty)
        stored = value.to(v_ptr.dtype.element_ty)
        if head % group == 0:
            tl.store(k_ptr + newest_row, key, mask=inside)
            tl.store(v_ptr + newest_row, stored, mask=inside)
        key, value = key.to(tl.float32), value.to(tl.float32)
        if INT8:
            key, value = key * k_scale, value * v_scale
        newest = tl.sum(q * key, axis=0)
        top = tl.maximum(top, newest)
    shrink = tl.exp2(highest - top)
    p = tl.where(split == 0, tl.exp2(newest - top), 0.0)
    total = tl.sum(weight * shrink) + p
    result = tl.sum(mixed * shrink, axis=0) + p * value

    out = out_ptr + (token * HEADS + head) * DIM + column
    if SPLITS == 1:
        tl.store(out, (result / total).to(out_ptr.dtype.element_ty), mask=inside)
    else:
        pair = token * HEADS + head
        pitch: tl.constexpr = DIM_PADDED + 2
        base = partial_ptr + pair * (SPLITS * pitch)
        mine = base + split * pitch
        tl.store(mine + column, result)
        tl.store(mine + DIM_PADDED, top)
        tl.store(mine + DIM_PADDED + 1, total)
        tl.debug_barrier()
        arrived = tl.atomic_add(counter_ptr + pair, 1, sem="acq_rel", scope="gpu")
        if arrived == SPLITS - 1:
            tl.store(counter_ptr + pair, 0)
            other = tl.arange(0, SPLITS)
            tops = tl.load(base + other * pitch + DIM_PADDED, cache_modifier=".cg")
            totals = tl.load(base + other * pitch + DIM_PADDED + 1, cache_modifier=".cg")
            scale = tl.exp2(tops - tl.max(tops, axis=0))
            cells = base + other[:, None] * pitch + column[None, :]
            parts = tl.load(cells, cache_modifier=".cg")
            result = tl.sum(parts * scale[:, None], axis=0) / tl.sum(totals * scale, axis=0)
            tl.store(out, result.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["sequence", "past", "tokens", "capacity"])
def rotate_and_cache_kernel(
    qkv_ptr, cos_ptr, sin_ptr, q_ptr, k_ptr, v_ptr, k_scale_ptr, v_scale_ptr, sequence,
    past, tokens, capacity,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, DIM: tl.constexpr, DIM_PADDED: tl.constexpr,
    BLOCK: tl.constexpr, INT8: tl.constexpr,
):  # fmt: skip
    """For many tokens of one sequence: rotated queries [HEADS, T, DIM], keys and values cached.

    Grid: tokens, (HEADS + 2 KV_HEADS) / BLOCK. Caches as for `decode_attention_kernel`.
    """
    half: tl.constexpr = DIM // 2
    total: tl.constexpr = HEADS + 2 * KV_HEADS
    token = tl.program_id(0)
    head = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)[:, None]
    column = tl.arange(0, DIM_PADDED)[None, :]
    inside = (head < total) & (column < DIM)
    row = qkv_ptr + token.to(tl.int64) * (total * DIM) + head * DIM
    place = (past + token).to(tl.int64) * DIM + column
    cos = tl.load(cos_ptr + place, mask=column < DIM, other=0.0)
    sin = tl.load(sin_ptr + place, mask=column < DIM, other=0.0)
    stored = tl.load(row + column, mask=inside, other=0.0)
    partner = tl.where(column < half, column + half, column - half)
    other = tl.load(row + partner, mask=inside, other=0.0).to(tl.float32)
    x = stored.to(tl.float32) * cos + tl.where(column < half, -other, other) * sin
    q_at = (head * tokens + token).to(tl.int64) * DIM + column
    tl.store(q_ptr + q_at, x.to(q_ptr.dtype.element_ty), mask=inside & (head < HEADS))
    first = sequence.to(tl.int64) * KV_HEADS
    key_line = (first + head - HEADS) * capacity
    value_line = (first + head - HEADS - KV_HEADS) * capacity
    is_key = (head >= HEADS) & (head < HEADS + KV_HEADS)
    is_value = (head >= HEADS + KV_HEADS) & (head < total)
    value = stored
    if INT8:
        x, x_scale = in_steps(x, 1)
        value, value_scale = in_steps(stored.to(tl.float32), 1)
        at = past + token
        tl.store(k_scale_ptr + key_line + at, x_scale.to(tl.float16), mask=is_key)
        tl.store(v_scale_ptr + value_line + at, value_scale.to(tl.float16), mask=is_value)
    k_at, v_at = k_ptr + key_line * DIM + place, v_ptr + value_line * DIM + place
    tl.store(k_at, x.to(k_ptr.dtype.element_ty), mask=inside & is_key)
    tl.store(v_at, value.to(v_ptr.dtype.element_ty), mask=inside & is_value)
