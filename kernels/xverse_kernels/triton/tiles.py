"""Tile sizes of every kernel, in one table: no autotuning, which would need a device and time.

Why each is what it is: docs/kernels.md. Measured on an H100; elsewhere compiled and counted only.
"""

from __future__ import annotations

from dataclasses import dataclass


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
# Packed matrices of few rows make too few programs to fill a GPU, so their sum is split.
NARROW_ROWS = 4096
NARROW_SPLITS = 4
GATE_UP = {
    32: GemvTile(rows=2, block=256, warps=2),
    16: GemvTile(rows=2, block=1024, warps=4),
    8: GemvTile(rows=16, block=64, warps=4),
    4: GemvTile(rows=16, block=64, warps=4),
}
DOWN = {
    32: GemvTile(rows=4, block=256, warps=2),
    16: GemvTile(rows=4, block=512, warps=2),
    8: GemvTile(rows=16, block=64, warps=4, splits=4),
    4: GemvTile(rows=16, block=64, warps=4, splits=4),
}


def linear_tile(bits: int, rows: int) -> GemvTile:
    """For a matrix of ``rows`` rows."""
    tile = LINEAR[bits]
    if bits > 8 or rows > NARROW_ROWS:
        return tile
    return GemvTile(tile.rows, tile.block, tile.warps, NARROW_SPLITS)


ROUTER_EXPERTS = 1  # a program
ROUTER_WARPS = 4
ATTENTION_BLOCK = 32
ATTENTION_WARPS = 4


def grouped_tile(bits: int, pairs_per_expert: float) -> GemmTile:
    """By how many pairs an expert has on average: small tiles waste less on padding."""
    stages = 4 if bits > 8 else 3
    if pairs_per_expert <= 16:
        return GemmTile(16, 64, 64, 4, stages)
    if pairs_per_expert <= 64:
        return GemmTile(64, 64, 64, 4, stages)
    return GemmTile(128, 64, 64, 8, stages)


def gemv_tokens(bits: int) -> int:
    """Up to how many tokens a linear layer is a GEMV a token rather than a matrix product."""
    return 4 if bits > 8 else 8


def experts_each_tokens(bits: int) -> int:
    """Up to how many tokens every (token, slot) pair reads its expert by itself."""
    return {32: 4, 16: 4, 8: 8, 4: 16}[bits]


def attention_splits(longest: int) -> int:
    """Into how many parts a past of at most ``longest`` positions is cut."""
    return 1 if longest <= 256 else 4 if longest <= 1024 else 16
