"""Choosing the next token without the host.

A logit and its id make one 64-bit key, ordered by logit and then by lower id. The first kernel
leaves the largest keys of each stretch of the vocabulary, the second one draws among them. What is
drawn from are the top-k likeliest tokens, at most CANDIDATES; of equal logits the lower ids.
"""

import triton
import triton.language as tl

LOWEST_KEY = tl.constexpr(-(2**63))
BROKEN_KEY = tl.constexpr(2**63 - 1)  # above every key of a number: some logit was none
LARGEST = tl.constexpr(3.0e38)


@triton.jit
def key_of(logits, ids):
    """int64 keys: a larger logit, or the same and a lower id, is a larger key."""
    bits = tl.where(logits == 0.0, 0.0, logits).to(tl.int32, bitcast=True)  # -0 is 0
    ordered = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    return (ordered.to(tl.int64) << 32) | (0x7FFFFFFF - ids).to(tl.int64)


@triton.jit
def logit_of(keys):
    """The logit in a key."""
    ordered = (keys >> 32).to(tl.int32)
    return tl.where(ordered < 0, ordered ^ 0x7FFFFFFF, ordered).to(tl.float32, bitcast=True)


@triton.jit
def id_of(keys):
    """The token id in a key."""
    return (0x7FFFFFFF - (keys & 0x7FFFFFFF)).to(tl.int32)


@triton.jit(do_not_specialize=["vocab", "first"])
def candidates_kernel(
    logits_ptr, seen_ptr, settings_ptr, counts_ptr, keys_ptr, vocab, first,
    BLOCK: tl.constexpr, CANDIDATES: tl.constexpr,
):  # fmt: skip
    """The largest keys of BLOCK penalised logits of one sequence.

    Grid: rows, blocks. Row 0 is sequence ``first``. logits fp32 [rows, vocab]; seen int8
    [T, vocab], 1 for tokens of the text so far; settings fp32 [T, 4]: temperature, repetition
    penalty, top-p, min-p; counts int32 [T]: top-k. Writes top-k keys of each block, largest first,
    to int64 [rows, blocks, CANDIDATES]; at temperature 0 only one.
    """
    block = tl.program_id(1)
    row = first + tl.program_id(0)
    ids = block * BLOCK + tl.arange(0, BLOCK)
    inside = ids < vocab
    logits_at = tl.program_id(0).to(tl.int64) * vocab + ids
    logits = tl.load(logits_ptr + logits_at, mask=inside, other=0.0)
    seen = tl.load(seen_ptr + row.to(tl.int64) * vocab + ids, mask=inside, other=0)
    temperature = tl.load(settings_ptr + row * 4)
    penalty = tl.load(settings_ptr + row * 4 + 1)
    broken = tl.max((tl.abs(logits) <= 3.4028235e38).to(tl.int32) ^ 1, axis=0) > 0
    penalised = tl.where(logits < 0, logits * penalty, logits / penalty)
    penalised = tl.minimum(tl.maximum(penalised, -LARGEST), LARGEST)
    logits = tl.where(seen > 0, penalised, logits)
    keys = tl.where(inside, key_of(logits, ids), LOWEST_KEY)
    keys = tl.where(broken, BROKEN_KEY, keys)
    out = keys_ptr + (tl.program_id(0) * tl.num_programs(1) + block) * CANDIDATES
    if temperature == 0.0:
        tl.store(out, tl.max(keys, axis=0))
    else:
        top_k = tl.load(counts_ptr + row)
        for place in range(top_k):
            best = tl.max(keys, axis=0)
            tl.store(out + place, best)
            keys = tl.where(keys == best, LOWEST_KEY, keys)


@triton.jit(do_not_specialize=["vocab", "blocks", "first"])
def draw_kernel(
    keys_ptr, settings_ptr, counts_ptr, seeds_ptr, steps_ptr, seen_ptr, tokens_ptr, vocab, blocks,
    first,
    BLOCKS_PADDED: tl.constexpr, CANDIDATES: tl.constexpr,
):  # fmt: skip
    """One token of each row's sequence (grid: rows), drawn among the largest keys.

    counts int32 [T]: top-k; seeds int64 [T]; steps int64 [T], a number that no two draws share.
    The token, or -1 if some logit was not finite, goes to tokens int64 [T] and into ``seen``.
    """
    row = first + tl.program_id(0)
    temperature = tl.load(settings_ptr + row * 4)
    base = keys_ptr + tl.program_id(0) * blocks * CANDIDATES
    block = tl.arange(0, BLOCKS_PADDED)
    heads = tl.load(base + block * CANDIDATES, mask=block < blocks, other=LOWEST_KEY)
    best = tl.max(heads, axis=0)
    token = id_of(best)
    if (temperature > 0.0) & (best != BROKEN_KEY):
        top_k = tl.load(counts_ptr + row)
        place = tl.arange(0, CANDIDATES)
        keys = tl.full((CANDIDATES,), LOWEST_KEY, tl.int64)
        taken = tl.zeros((BLOCKS_PADDED,), tl.int32)
        for i in range(top_k):  # merge the sorted lists of the blocks
            largest = tl.max(heads, axis=0)
            keys = tl.where(place == i, largest, keys)
            winner = (heads == largest) & (block < blocks)
            taken += winner.to(tl.int32)
            more = winner & (taken < top_k)
            following = tl.load(base + block * CANDIDATES + taken, mask=more, other=LOWEST_KEY)
            heads = tl.where(winner, following, heads)
        logits = tl.where(keys == LOWEST_KEY, float("-inf"), logit_of(keys))
        # relative to the likeliest token, no temperature however small can overflow
        logits = (logits - logit_of(best)) / temperature
        weights = tl.exp(logits)
        weights = weights / tl.sum(weights, axis=0)
        # a token goes if it and all less likely ones have at most 1 - top_p together
        rest = 1.0 - (tl.cumsum(weights, axis=0) - weights)
        top_p = tl.load(settings_ptr + row * 4 + 2)
        least = tl.where(top_p < 1.0, 1.0 - top_p, -1.0)
        weights = tl.where((place == 0) | (rest > least), weights, 0.0)
        min_p = tl.load(settings_ptr + row * 4 + 3)
        weights = tl.where(weights >= min_p * tl.max(weights, axis=0), weights, 0.0)
        uniform = tl.rand(tl.load(seeds_ptr + row), tl.load(steps_ptr + row).to(tl.int32))
        reached = tl.cumsum(weights, axis=0)
        target = uniform * tl.max(reached, axis=0)
        chosen = tl.sum((reached <= target).to(tl.int32), axis=0)
        last_kept = tl.max(tl.where(weights > 0, place, 0), axis=0)
        chosen = tl.minimum(chosen, last_kept)
        token = id_of(tl.max(tl.where(place == chosen, keys, LOWEST_KEY), axis=0))
    if best == BROKEN_KEY:
        tl.store(tokens_ptr + row, -1)
    else:
        tl.store(tokens_ptr + row, token.to(tl.int64))
        tl.store(seen_ptr + row.to(tl.int64) * vocab + token, 1)
    tl.store(steps_ptr + row, tl.load(steps_ptr + row) + 1)
