"""The router: norm, logits, softmax, top-k and weights in one launch."""

import triton
import triton.language as tl


@triton.jit
def router_kernel(
    x_ptr, norm_ptr, router_ptr, normed_ptr, logits_ptr, ids_ptr, weights_ptr, counter_ptr, eps,
    renormalise_eps,
    HIDDEN: tl.constexpr, HIDDEN_PADDED: tl.constexpr, EXPERTS: tl.constexpr,
    EXPERTS_PADDED: tl.constexpr, TOP_K: tl.constexpr, SHARED: tl.constexpr,
    SLOTS_PADDED: tl.constexpr, TILE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """TILE experts' logits for one token a program; the last program of a token chooses.

    Grid: tokens, experts / TILE. Writes the normed state [T, H] in the dtype of x, logits [T, E]
    fp32, and for each token TOP_K + SHARED slots: expert ids int32 and weights.
    """
    token, tile = tl.program_id(0), tl.program_id(1)
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    column = tl.arange(0, HIDDEN_PADDED)
    inside = column < HIDDEN
    x = tl.load(x_ptr + token * HIDDEN + column, mask=inside, other=0.0).to(tl.float32)
    x *= 1.0 / tl.sqrt(tl.sum(x * x, axis=0) / HIDDEN + eps)
    dtype = normed_ptr.dtype.element_ty
    norm = tl.load(norm_ptr + column, mask=inside, other=0.0).to(tl.float32)
    normed = (x.to(dtype).to(tl.float32) * norm).to(dtype)
    if tile == 0:
        tl.store(normed_ptr + token * HIDDEN + column, normed, mask=inside)

    expert = tile * TILE + tl.arange(0, TILE)
    known = expert < EXPERTS
    at = expert[:, None] * HIDDEN + column[None, :]
    rows = tl.load(router_ptr + at, mask=known[:, None] & inside[None, :], other=0.0)
    logits = tl.sum(rows * normed.to(tl.float32)[None, :], axis=1)
    tl.store(logits_ptr + token * EXPERTS + expert, logits, mask=known)
    tl.debug_barrier()
    arrived = tl.atomic_add(counter_ptr + token, 1, sem="acq_rel", scope="gpu")
    if arrived == tl.num_programs(1) - 1:
        tl.store(counter_ptr + token, 0)
        choose(
            logits_ptr + token * EXPERTS, ids_ptr + token * (TOP_K + SHARED),
            weights_ptr + token * (TOP_K + SHARED), renormalise_eps,
            EXPERTS, EXPERTS_PADDED, TOP_K, SHARED, SLOTS_PADDED,
        )  # fmt: skip


@triton.jit
def choose_kernel(
    logits_ptr, ids_ptr, weights_ptr, renormalise_eps,
    EXPERTS: tl.constexpr, EXPERTS_PADDED: tl.constexpr, TOP_K: tl.constexpr,
    SHARED: tl.constexpr, SLOTS_PADDED: tl.constexpr,
):  # fmt: skip
    """The second half of the router by itself (grid: tokens), for logits computed elsewhere."""
    token = tl.program_id(0)
    choose(
        logits_ptr + token * EXPERTS, ids_ptr + token * (TOP_K + SHARED),
        weights_ptr + token * (TOP_K + SHARED), renormalise_eps,
        EXPERTS, EXPERTS_PADDED, TOP_K, SHARED, SLOTS_PADDED,
    )  # fmt: skip


@triton.jit
def choose(
    logits_ptr, ids_ptr, weights_ptr, renormalise_eps,
    EXPERTS: tl.constexpr, EXPERTS_PADDED: tl.constexpr, TOP_K: tl.constexpr,
    SHARED: tl.constexpr, SLOTS_PADDED: tl.constexpr,
):  # fmt: skip
    """Top-k of the softmax, renormalised; ties go to the lowest id. Then the shared slots."""
    every = tl.arange(0, EXPERTS_PADDED)
    known = every < EXPERTS
    # written by other programs of this launch: the first-level cache may be stale
    logits = tl.load(
        logits_ptr + every, mask=known, other=float("-inf"), cache_modifier=".cg"
    )  # fmt: skip
    likely = tl.exp(logits - tl.max(logits, axis=0))
    likely = likely / tl.sum(likely, axis=0)
    slot = tl.arange(0, SLOTS_PADDED)
    ids = EXPERTS + slot - TOP_K
    weights = tl.full((SLOTS_PADDED,), 0.0, tl.float32)
    for k in tl.static_range(TOP_K):
        value, best = tl.max(
            likely, axis=0, return_indices=True, return_indices_tie_break_left=True
        )
        best = tl.minimum(best, EXPERTS - 1)  # among NaN, any lane may win
        ids = tl.where(slot == k, best, ids)
        weights = tl.where(slot == k, value, weights)
        likely = tl.where(every == best, -1.0, likely)
    weights = weights / (tl.sum(weights, axis=0) + renormalise_eps)
    weights = tl.where(slot < TOP_K, weights, 1.0)
    inside = slot < TOP_K + SHARED
    tl.store(ids_ptr + slot, ids, mask=inside)
    tl.store(weights_ptr + slot, weights.to(weights_ptr.dtype.element_ty), mask=inside)
