"""Tile sizes of every kernel, in one table: no autotuning, which would need a device and time.

Why each is what it is: docs/kernels.md. Measured on an H100; elsewhere compiled and counted only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class GemvTile:
    """Rows of the matrix and elements (dense) or words (packed) of the vector a program takes at
    once, its warps, and into how many parts the sum is split."""

    rows: int
    block: int
    warps: int
    splits: int = 1


@dataclass(frozen=True)
class GemmTile:
    """Rows of activations, rows of weights, depth, warps and pipeline stages."""

    m: int
    n: int
    k: int
    warps: int
    stages: int


# Dense tiles: a block is eight elements for every thread, so that loads are 16 bytes wide and need
# no exchange between threads. Packed tiles: 16 words a warp.
LINEAR = {
    32: GemvTile(rows=4, block=256, warps=2),
    16: GemvTile(rows=4, block=512, warps=2),
    8: GemvTile(rows=16, block=64, warps=4),
    4: GemvTile(rows=16, block=64, warps=4),
}
# Matrices of few rows make few programs, which need more warps to keep the memory busy.
FEW_ROWS = 8192
LINEAR_FEW_ROWS = {
    32: GemvTile(rows=4, block=256, warps=2),
    16: GemvTile(rows=4, block=512, warps=2),
    8: GemvTile(rows=16, block=128, warps=8),
    4: GemvTile(rows=16, block=128, warps=8),
}
GATE_UP = {
    32: GemvTile(rows=2, block=256, warps=2),
    16: GemvTile(rows=1, block=1024, warps=4),
    8: GemvTile(rows=16, block=32, warps=4),
    4: GemvTile(rows=16, block=32, warps=4),
}
DOWN = {
    32: GemvTile(rows=4, block=256, warps=2),
    16: GemvTile(rows=8, block=1024, warps=4),
    8: GemvTile(rows=16, block=64, warps=4, splits=4),
    4: GemvTile(rows=16, block=32, warps=2, splits=8),
}
# A slot alone: no split, as there are as many programs as with all of them.
DOWN_PARTS = {
    32: GemvTile(rows=4, block=256, warps=2),
    16: GemvTile(rows=4, block=512, warps=2),
    8: GemvTile(rows=16, block=64, warps=4),
    4: GemvTile(rows=16, block=32, warps=2),
}
ADD_COLUMNS, ADD_WARPS = 128, 1  # a program of `add_parts`: 16 bytes a thread and slot
COPY_ELEMENTS, COPY_WARPS = 256, 2  # of each pair, a program of `copy_small`


def linear_tile(bits: int, rows: int) -> GemvTile:
    """For a matrix of ``rows`` rows."""
    return (LINEAR_FEW_ROWS if rows <= FEW_ROWS else LINEAR)[bits]


ROUTER_EXPERTS = 1  # a program
ROUTER_TOKENS = 16  # above, torch's fp32 product is faster
ROUTER_WARPS = 4


def attention_tile(longest: int) -> tuple[int, int, int]:
    """(positions a block, warps, parts of the past) for a past of at most ``longest`` positions.

    A position for every two threads; as many programs as one wave holds.
    """
    if longest <= 256:
        return 64, 4, 1
    if longest <= 1024:
        return 64, 4, 8
    return 32, 2, 32


def attention_registers(capability: int) -> int:
    """Most registers of a thread in decode attention on a compute capability, 90 for 9.0.

    With 128, 16 warps run on a multiprocessor, and 132 of them hold 32 parts of 32 heads in one
    wave. The compiler for 10.0 and later would spill; devices of that kind have multiprocessors
    enough for 14 warps.
    """
    return 144 if capability >= 100 else 128


# What multiplies matrices decides how many registers and how much shared memory a tile takes:
# groups of warps on compute capability 9, tensor memory on 10 and 11, single warps on all others.
MatrixUnit = Literal["wgmma", "tcgen05", "mma", "wmma"]
# (up to how many pairs an expert has on average, tile): small tiles waste less on padding.
Choice = tuple[tuple[float, GemmTile], ...]
MANY = float("inf")

# Faster than torch's attention (cuDNN and flash) at every length measured, by 1.3 to 2.9 times.
PREFILL_ATTENTION: dict[MatrixUnit, GemmTile] = {
    "wgmma": GemmTile(m=64, n=64, k=0, warps=4, stages=3),
    "tcgen05": GemmTile(m=64, n=64, k=0, warps=4, stages=3),
    "mma": GemmTile(m=64, n=64, k=0, warps=4, stages=2),
    "wmma": GemmTile(m=64, n=32, k=0, warps=8, stages=2),
}
# Keys and values in int8 become floats in registers, which single warps have too few of.
PREFILL_ATTENTION_INT8: dict[MatrixUnit, GemmTile] = {
    **PREFILL_ATTENTION,
    "mma": GemmTile(m=64, n=32, k=0, warps=4, stages=2),
}

DENSE_LARGE: Choice = (
    (32, GemmTile(32, 128, 64, 4, 4)),
    (128, GemmTile(64, 128, 64, 4, 4)),
    (MANY, GemmTile(128, 256, 64, 8, 4)),
)
PACKED_LARGE: Choice = (
    (4, GemmTile(16, 64, 64, 4, 3)),
    (32, GemmTile(32, 128, 64, 4, 3)),
    (128, GemmTile(64, 128, 64, 4, 2)),
    (MANY, GemmTile(128, 128, 64, 4, 2)),
)
# 99 KB of shared memory for a program, so two programs at a time where they have 49 KB each. The
# sums of 128 x 256 outputs, or what 128 x 128 take with packed weights, do not fit in registers.
DENSE_SMALL: Choice = (
    (32, GemmTile(32, 128, 64, 4, 3)),
    (128, GemmTile(64, 128, 64, 4, 3)),
    (MANY, GemmTile(128, 128, 32, 8, 4)),
)
PACKED_SMALL: Choice = (
    (4, GemmTile(16, 64, 64, 4, 3)),
    (32, GemmTile(32, 128, 64, 8, 3)),
    (MANY, GemmTile(64, 128, 64, 8, 2)),
)
GROUPED: dict[MatrixUnit, dict[int, Choice]] = {
    "wgmma": {16: DENSE_LARGE, 8: PACKED_LARGE, 4: PACKED_LARGE},
    # eight warps, or registers do not last; at 128 x 128 the eight products of int4 words would
    # take twice the tensor memory there is
    "tcgen05": {
        16: DENSE_LARGE,
        8: (
            *PACKED_LARGE[:2],
            (128, GemmTile(64, 128, 64, 8, 2)),
            (MANY, GemmTile(128, 128, 64, 8, 2)),
        ),
        4: (
            *PACKED_LARGE[:2],
            (128, GemmTile(64, 128, 64, 8, 2)),
            (MANY, GemmTile(128, 64, 64, 4, 2)),
        ),
    },
    "mma": {16: DENSE_SMALL, 8: PACKED_SMALL, 4: PACKED_SMALL},
    # operands wait in registers there, so that only small tiles do without scratch memory
    "wmma": {
        16: (
            (32, GemmTile(32, 64, 32, 4, 2)),
            (128, GemmTile(64, 64, 32, 4, 2)),
            (MANY, GemmTile(128, 64, 32, 8, 2)),
        ),
        8: (
            (4, GemmTile(16, 64, 64, 4, 2)),
            (32, GemmTile(32, 64, 64, 4, 2)),
            (MANY, GemmTile(64, 64, 64, 8, 2)),
        ),
        4: ((4, GemmTile(16, 64, 64, 4, 1)), (MANY, GemmTile(32, 64, 64, 8, 1))),
    },
}


def grouped_tile(bits: int, pairs_per_expert: float, unit: MatrixUnit) -> GemmTile:
    """For weights of ``bits`` bits on a device with ``unit``."""
    choice = GROUPED[unit][min(bits, 16)]
    return next(tile for most, tile in choice if pairs_per_expert <= most)


def gemv_tokens(bits: int) -> int:
    """Up to how many tokens a linear layer is a GEMV a token rather than a matrix product."""
    return 4 if bits > 8 else 8


# Where torch multiplies, an expert's weights are written out dequantised and read again: counting
# bytes, pairs that read for themselves are worth it for longer.
EACH_TOKENS = {32: 4, 16: 4, 8: 8, 4: 16}
EACH_TOKENS_BY_TORCH = {32: 8, 16: 8, 8: 32, 4: 64}


def experts_each_tokens(bits: int, *, by_torch: bool = False) -> int:
    """Up to how many tokens every (token, slot) pair reads its expert by itself.

    ``by_torch``: more tokens go through torch's products instead of grouped ones.
    """
    return (EACH_TOKENS_BY_TORCH if by_torch else EACH_TOKENS)[bits]


def token_counts(pairs_per_token: float, unit: MatrixUnit, most: int) -> list[int]:
    """The largest number of tokens, up to ``most``, of each way that passes are divided in.

    Args:
        pairs_per_token: (token, slot) pairs of an expert on average, for each token.
        unit: of the device.
        most: tokens of a pass.
    """
    counts = {1, ROUTER_TOKENS, most, *EACH_TOKENS.values(), *EACH_TOKENS_BY_TORCH.values()}
    for bits, choice in GROUPED[unit].items():
        counts.add(gemv_tokens(bits))
        counts |= {int(pairs / pairs_per_token) for pairs, _ in choice if pairs != MANY}
    return sorted(one for one in counts if 1 <= one <= most)
