"""Attention for single new tokens: rotation, cache write and split-KV attention in one launch."""

import triton
import triton.language as tl

from xverse_kernels.triton.dot_kernels import UNIT, integer_of, magnification

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
    return steps_of(x, scale), scale


@triton.jit
def steps_of(x, scale):
    """Integers, fp32, of which ``scale`` is one step."""
    usable = (scale > 0) & (scale <= 65504.0)
    q = tl.where(usable, x * (1.0 / tl.where(usable, scale, 1.0)), 0.0)
    q = tl.minimum(tl.maximum(q, -127.0), 127.0)
    return (q + 12582912.0) - 12582912.0  # to the nearest integer, ties to even


@triton.jit
def element_of(words, i: tl.constexpr, PER: tl.constexpr):
    """The i-th of the PER elements in each word, fp32: 4 integers as `integer_of` has them, larger
    by 128 than they are; 2 bf16, whose bits are the upper half of a float; or 1 float."""
    if PER == 4:
        return integer_of(words ^ -2139062144, i, 8)  # 0x80808080: their signs
    if PER == 2:
        upper = words << 16 if i == 0 else words & -65536
        return upper.to(tl.float32, bitcast=True)
    return words.to(tl.float32)


@triton.jit
def taken_apart(x, PER: tl.constexpr):
    """[WIDTH] as PER vectors: the first elements of all words, the second ones, and so on."""
    parts = (x,)
    if PER > 1:
        half: tl.constexpr = x.shape[0] // 2
        parts = tl.split(tl.reshape(x, (half, 2)))
    if PER > 2:
        quarter: tl.constexpr = x.shape[0] // 4
        first, third = tl.split(tl.reshape(parts[0], (quarter, 2)))
        second, fourth = tl.split(tl.reshape(parts[1], (quarter, 2)))
        parts = (first, second, third, fourth)
    return parts


@triton.jit
def put_together(parts, c: tl.constexpr, PER: tl.constexpr):
    """Chunk c of `taken_apart` matrices: [BLOCK, WIDTH]; sums over integers in their true worth."""
    whole = parts[PER * c]
    if PER == 2:
        whole = tl.interleave(whole, parts[2 * c + 1])
    if PER == 4:
        even = tl.interleave(in_units(whole, 0), in_units(parts[4 * c + 2], 2))
        odd = tl.interleave(in_units(parts[4 * c + 1], 1), in_units(parts[4 * c + 3], 3))
        whole = tl.interleave(even, odd)
    return whole


@triton.jit
def in_units(x, i: tl.constexpr):
    """Sums over i-th integers of words, whose factors were all made larger as the first ones'."""
    return x * (magnification(i, 8) / magnification(0, 8) / UNIT)


@triton.jit
def keep_newest(
    q_row, k_row, v_row, cos_row, sin_row, k_ptr, v_ptr, k_scale_ptr, v_scale_ptr, place, writes,
    DIM: tl.constexpr, DIM_PADDED: tl.constexpr, INT8: tl.constexpr,
):  # fmt: skip
    """Rotate a new key, and if ``writes``, put it and its value at a place of the cache.

    Returns:
        Query times key as it is kept; the scale [1] of the value, with INT8.
    """
    column = tl.arange(0, DIM_PADDED)
    inside = column < DIM
    cos = tl.load(cos_row + column, mask=inside, other=0.0)
    sin = tl.load(sin_row + column, mask=inside, other=0.0)
    q = rotated(q_row, cos, sin, column, inside, DIM)
    key = rotated(k_row, cos, sin, column, inside, DIM)
    value = tl.load(v_row + column, mask=inside, other=0.0)
    v_scale = tl.full((1,), 1.0, tl.float32)
    if INT8:
        key, k_scale = in_steps(key, 0)
        value, v_scale = in_steps(value.to(tl.float32), 0)
        if writes:
            one = place + tl.arange(0, 1)
            tl.store(k_scale_ptr + one, k_scale.to(tl.float16))
            tl.store(v_scale_ptr + one, v_scale.to(tl.float16))
    key = key.to(k_ptr.dtype.element_ty)
    if writes:
        tl.store(k_ptr + place * DIM + column, key, mask=inside)
        tl.store(v_ptr + place * DIM + column, value.to(v_ptr.dtype.element_ty), mask=inside)
    key = key.to(tl.float32)
    if INT8:
        key *= k_scale
    return tl.sum(q * key, axis=0), v_scale


@triton.jit
def join_parts(
    parts_ptr, tops_ptr, out_ptr, SPLITS: tl.constexpr, DIM: tl.constexpr, DIM_PADDED: tl.constexpr
):
    """The softmax over all of SPLITS parts that other programs have written: sums [SPLITS, DIM];
    then the highest score of each, and its weight, [SPLITS], fp32."""
    other = tl.arange(0, SPLITS)
    column = tl.arange(0, DIM_PADDED)
    inside = column < DIM
    tops = tl.load(tops_ptr + other, cache_modifier=".cg")
    totals = tl.load(tops_ptr + SPLITS + other, cache_modifier=".cg")
    scale = tl.exp2(tops - tl.max(tops, axis=0))
    cells = parts_ptr + other[:, None] * DIM + column[None, :]
    parts = tl.load(cells, mask=inside[None, :], other=0.0, cache_modifier=".cg")
    result = tl.sum(parts * scale[:, None], axis=0) / tl.sum(totals * scale, axis=0)
    tl.store(out_ptr + column, result.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["capacity"])
def decode_attention_kernel(
    qkv_ptr, positions_ptr, sequences_ptr, cos_ptr, sin_ptr, k_ptr, v_ptr, k_scale_ptr,
    v_scale_ptr, out_ptr, partial_ptr, counter_ptr, capacity,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, DIM: tl.constexpr, DIM_PADDED: tl.constexpr,
    PER: tl.constexpr, WORDS: tl.constexpr, BLOCK: tl.constexpr, SPLITS: tl.constexpr,
    INT8: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One token of one sequence, one query head, a part of its past.

    Grid: tokens, heads, splits. Each token is the newest of its own sequence: its key and value are
    rotated, written to the cache and used by split 0; all splits read the positions before it.
    Every lane of a block keeps its own running softmax, so that the loop has no reduction over
    positions. A head goes through the loop in chunks of WORDS words, PER elements each, all of them
    in the same threads. The last split to finish joins them all, in the order of their numbers.

    qkv [T, (HEADS + 2 KV_HEADS) * DIM]; positions, sequences int32 [T]; cos, sin fp32
    [positions, DIM]; caches [sequences, KV_HEADS, capacity, DIM], with INT8 their scales fp16
    [sequences, KV_HEADS, capacity]; out [T, HEADS * DIM].
    """
    token, head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    width: tl.constexpr = WORDS * PER
    chunks: tl.constexpr = DIM // width
    group: tl.constexpr = HEADS // KV_HEADS
    to_base_2: tl.constexpr = LOG2_E / DIM**0.5
    kv_head = head // group
    position = tl.load(positions_ptr + token)
    sequence = tl.load(sequences_ptr + token).to(tl.int64)
    row = qkv_ptr + token * ((HEADS + 2 * KV_HEADS) * DIM)
    value_row = row + (HEADS + KV_HEADS + kv_head) * DIM
    cos_row, sin_row = cos_ptr + position * DIM, sin_ptr + position * DIM
    cell = tl.arange(0, width)

    query, mixed = (), ()
    query_sum = tl.zeros((width,), tl.float32)
    for c in tl.static_range(chunks):
        column = c * width + cell
        cos, sin = tl.load(cos_row + column), tl.load(sin_row + column)
        q = rotated(row + head * DIM, cos, sin, column, column < DIM, DIM) * to_base_2
        query_sum += q
        parts = taken_apart(q, PER)
        for i in tl.static_range(PER):
            part = parts[i] * magnification(i, 8) if INT8 else parts[i]
            query += (part[None, :],)
            mixed += (tl.zeros((BLOCK, WORDS), tl.float32),)
    query_zero = 128.0 * tl.sum(query_sum, axis=0)

    cache_row = (sequence * KV_HEADS + kv_head) * capacity
    share = (position + SPLITS - 1) // SPLITS
    first = split * share
    last = tl.minimum(first + share, position)
    lane = tl.arange(0, BLOCK)[:, None]
    word = tl.arange(0, WORDS)[None, :]
    # lanes by one, so that nothing moves between threads but the sum over a row
    highest = tl.full((BLOCK, 1), LOWEST, tl.float32)
    weight = tl.zeros((BLOCK, 1), tl.float32)
    k_words, v_words = k_ptr, v_ptr
    if PER > 1:
        k_words = k_ptr.to(tl.pointer_type(tl.int32), bitcast=True)
        v_words = v_ptr.to(tl.pointer_type(tl.int32), bitcast=True)
    place = (cache_row + first + lane) * (DIM // PER) + word
    if INT8:
        scaled_weight = tl.zeros((BLOCK, 1), tl.float32)
        k_steps = k_scale_ptr + cache_row + first + lane
        v_steps = v_scale_ptr + cache_row + first + lane
    for start in range(first, last, BLOCK):
        valid = start + lane < last
        keys, values = (), ()
        for c in tl.static_range(chunks):
            keys += (tl.load(k_words + place + c * WORDS, mask=valid, other=0),)
            values += (tl.load(v_words + place + c * WORDS, mask=valid, other=0),)
        products = tl.zeros((BLOCK, WORDS), tl.float32)
        for n in tl.static_range(chunks * PER):
            products += query[n] * element_of(keys[n // PER], n % PER, PER)
        scores = tl.sum(products, axis=1, keep_dims=True)
        if INT8:
            scores = scores * (1 / UNIT) - query_zero
            scores *= tl.load(k_steps, mask=valid, other=0.0).to(tl.float32)
        scores = tl.where(valid, scores, LOWEST)
        higher = tl.maximum(highest, scores)
        shrink = tl.exp2(highest - higher)
        p = tl.where(valid, tl.exp2(scores - higher), 0.0)
        weight = weight * shrink + p
        if INT8:
            p *= tl.load(v_steps, mask=valid, other=0.0).to(tl.float32)
            scaled_weight = scaled_weight * shrink + p
            p *= magnification(0, 8)
            k_steps += BLOCK
            v_steps += BLOCK
        grown = ()
        for n in tl.static_range(chunks * PER):
            grown += (mixed[n] * shrink + p * element_of(values[n // PER], n % PER, PER),)
        mixed = grown
        highest = higher
        place += BLOCK * (DIM // PER)

    top = tl.max(highest)
    newest = LOWEST
    v_scale = tl.full((1,), 1.0, tl.float32)
    if split == 0:
        newest, v_scale = keep_newest(
            row + head * DIM, row + (HEADS + kv_head) * DIM, value_row, cos_row, sin_row,
            k_ptr, v_ptr, k_scale_ptr, v_scale_ptr, cache_row + position, head % group == 0,
            DIM, DIM_PADDED, INT8,
        )  # fmt: skip
        newest *= to_base_2
        top = tl.maximum(top, newest)
    shrink = tl.exp2(highest - top)
    p = tl.where(split == 0, tl.exp2(newest - top), 0.0)
    total = tl.sum(weight * shrink) + p
    zero = 128.0 * tl.sum(scaled_weight * shrink) if INT8 else 0.0

    pair = token * HEADS + head
    parts_ptr = partial_ptr + pair * (SPLITS * (DIM + 2))
    for c in tl.static_range(chunks):
        column = c * width + cell
        result = tl.sum(put_together(mixed, c, PER) * shrink, axis=0) - zero
        if split == 0:
            value = tl.load(value_row + column)
            if INT8:
                value = steps_of(value.to(tl.float32), v_scale) * v_scale
            else:  # as it is kept
                value = value.to(v_ptr.dtype.element_ty).to(tl.float32)
            result += p * value
        if SPLITS == 1:
            out = (result / total).to(out_ptr.dtype.element_ty)
            tl.store(out_ptr + pair * DIM + column, out)
        else:
            tl.store(parts_ptr + split * DIM + column, result)
    if SPLITS > 1:
        tops_ptr = parts_ptr + SPLITS * DIM
        tl.store(tops_ptr + split, top)
        tl.store(tops_ptr + SPLITS + split, total)
        tl.debug_barrier()
        arrived = tl.atomic_add(counter_ptr + pair, 1, sem="acq_rel", scope="gpu")
        if arrived == SPLITS - 1:
            tl.store(counter_ptr + pair, 0)
            join_parts(parts_ptr, tops_ptr, out_ptr + pair * DIM, SPLITS, DIM, DIM_PADDED)


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
