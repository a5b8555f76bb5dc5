"""Dot products of weight rows with one vector, for every weight format: the body of all GEMVs.

Quantised weights become floats without a conversion: the bits of a word under a mask, read as fp32,
are a subnormal number (or one of the smallest normal ones), and there a float is its bits times
2^-149. So an integer q at bit p of a word is q * 2^(p - 149) after a single AND, and the element of
the vector that meets it is made larger by a power of two. Fused multiply-adds take subnormals at
full speed and without rounding. Per weight that is one AND and one FMA, and a shift for two in
eight whose bits lie too high.
"""

import triton
import triton.language as tl

UNIT = tl.constexpr(2.0**-59)  # what an integer 1 is worth in a partial sum


@triton.constexpr_function
def column_of(i, bits):
    """Which column of a word its i-th integer belongs to: see docs/format.md."""
    return (2 * i if i < 4 else 2 * i - 7) if bits == 4 else i


@triton.constexpr_function
def place_of(i, bits):
    """(how far a word is shifted down, at which bit the i-th integer then is)."""
    shift = 0 if (i + 1) * bits <= 24 else 8
    return shift, i * bits - shift


@triton.constexpr_function
def magnification(i, bits):
    """The factor of the vector that gives the i-th integer the worth of UNIT."""
    return 2.0**149 * UNIT.value / 2 ** place_of(i, bits)[1]


@triton.jit
def integer_of(words, i: tl.constexpr, BITS: tl.constexpr):
    """The i-th unsigned integer of each int32 word, as fp32 of some power of two."""
    shift: tl.constexpr = place_of(i, BITS)[0]
    mask: tl.constexpr = (2**BITS - 1) << place_of(i, BITS)[1]
    moved = words >> shift if shift else words
    return (moved & mask).to(tl.float32, bitcast=True)


@triton.jit
def vector_plane(
    x_ptr, norm_ptr, word, inside, i: tl.constexpr, BITS: tl.constexpr, NORM: tl.constexpr
):
    """The element of the vector that meets the i-th integer of each word, fp32 like ``word``."""
    at = word * (32 // BITS) + column_of(i, BITS)
    x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
    if NORM:
        x *= tl.load(norm_ptr + at, mask=inside, other=0.0).to(tl.float32)
    return x


@triton.jit
def word_place(word, row, K: tl.constexpr, BITS: tl.constexpr):
    """Where a word is, counted in words from the start of the matrix; rows count from there too."""
    chunk_words: tl.constexpr = 2 * BITS
    chunk_pitch: tl.constexpr = (16 * 64 * BITS // 8 + 64) // 4
    block_pitch: tl.constexpr = K * BITS // 2 + K // 4
    in_block = word // chunk_words * chunk_pitch + word % chunk_words * 16
    return row // 16 * block_pitch + in_block + row % 16


@triton.jit
def scale_place(word, row, K: tl.constexpr, BITS: tl.constexpr):
    """Where the scale of a word is, counted in fp16 from the start of the matrix."""
    group_words: tl.constexpr = BITS  # in a group of 32
    chunk_words: tl.constexpr = 2 * BITS
    chunk_pitch: tl.constexpr = (16 * 64 * BITS // 8 + 64) // 2
    block_pitch: tl.constexpr = K * BITS + K // 2
    chunk = word // chunk_words
    integers = chunk_words * 32
    if K % 64 != 0:  # the half chunk at the end has half the words before its scales
        integers = tl.where(chunk == K // 64, group_words * 32, integers)
    in_block = chunk * chunk_pitch + integers + word % chunk_words // group_words * 16
    return row // 16 * block_pitch + in_block + row % 16


@triton.jit
def word_dot(words, x_ptr, norm_ptr, word, inside, BITS: tl.constexpr, NORM: tl.constexpr):
    """Each word's integers, less their zero, times their elements of the vector, in UNITs."""
    zero: tl.constexpr = -UNIT * 2 ** (BITS - 1)
    nothing = tl.zeros_like(word).to(tl.float32)
    for i in tl.static_range(32 // BITS):
        nothing += vector_plane(x_ptr, norm_ptr, word, inside, i, BITS, NORM)
    part = tl.broadcast_to(nothing * zero, words.shape)
    for i in tl.static_range(32 // BITS):
        x = vector_plane(x_ptr, norm_ptr, word, inside, i, BITS, NORM)
        part += x * magnification(i, BITS) * integer_of(words, i, BITS)
    return part


@triton.jit
def packed_dot(
    total, x_ptr, norm_ptr, w_ptr, scale_ptr, row, first, last, factor,
    K: tl.constexpr, BITS: tl.constexpr, WORDS: tl.constexpr, NORM: tl.constexpr,
):  # fmt: skip
    """Add rows of a packed matrix times a vector, over words first to last, to a running total.

    Args:
        total: fp32 [WORDS, rows], in UNITs; its sum over the words is the dot product.
        x_ptr: the vector [K].
        norm_ptr: with NORM, a factor for each of its elements.
        w_ptr: int32, the matrix; scale_ptr: the same place as fp16.
        row: int32 [1, rows].
        first, last: range of words; first is a multiple of a chunk's words.
        factor: of the whole product.
    """
    for start in range(first, last, WORDS):
        word = start + tl.arange(0, WORDS)[:, None]
        inside = word < last
        words = tl.load(w_ptr + word_place(word, row, K, BITS), mask=inside, other=0)
        scale = tl.load(scale_ptr + scale_place(word, row, K, BITS), mask=inside, other=0.0)
        part = word_dot(words, x_ptr, norm_ptr, word, inside, BITS, NORM)
        total += part * (scale.to(tl.float32) * factor)
    return total


@triton.jit
def dense_dot(
    total, x_ptr, norm_ptr, w_ptr, row, factor,
    K: tl.constexpr, BLOCK: tl.constexpr, NORM: tl.constexpr,
):  # fmt: skip
    """Add rows of a plain matrix times a vector [K] to a running total, fp32 [rows, BLOCK].

    With BLOCK eight times the threads, rows and vector come in the same layout, 16 bytes a thread.
    ``row``: int32 [rows, 1]; the rest as in `packed_dot`.
    """
    for start in tl.static_range(0, K, BLOCK):
        at = start + tl.arange(0, BLOCK)[None, :]
        inside = at < K
        w = tl.load(w_ptr + row * K + at, mask=inside, other=0.0)
        x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32) * factor
        if NORM:
            x *= tl.load(norm_ptr + at, mask=inside, other=0.0).to(tl.float32)
        total += w.to(tl.float32) * x
    return total


@triton.jit
def weight_plane(words, scale, i: tl.constexpr, BITS: tl.constexpr):
    """The i-th weight of each int32 word, fp32: the integer in the mantissa of 256 + q (int8) or
    16 + q (int4), less the excess, times its scale."""
    low: tl.constexpr = 23 - BITS  # the integer belongs at the top of the mantissa
    shift: tl.constexpr = low - BITS * i
    mask: tl.constexpr = (2**BITS - 1) << low
    exponent: tl.constexpr = (127 + BITS) << 23
    moved = words << shift if shift > 0 else words >> -shift
    number = ((moved & mask) | exponent).to(tl.float32, bitcast=True)
    return (number - 1.5 * 2**BITS) * scale


@triton.jit
def prefetch(ptr, COUNT: tl.constexpr):
    """Ask for COUNT elements (or the first part of them) to come to the L2 cache."""
    size: tl.constexpr = COUNT * ptr.dtype.element_ty.primitive_bitwidth // 8
    lines: tl.constexpr = lines_within(size)
    address = ptr.to(tl.int64, bitcast=True) + tl.arange(0, lines) * 128
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.u32 $0, 0;", "=r,l", [address], dtype=tl.int32,
        is_pure=False, pack=1,
    )  # fmt: skip


@triton.constexpr_function
def lines_within(size):
    """The largest power of two of 128-byte lines in ``size`` bytes."""
    return 1 << max(0, (size // 128).bit_length() - 1)
