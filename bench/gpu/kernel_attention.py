"""Attention: decoding over the past in several parts, prompts in several tiles."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from bench.gpu.inputs import Shape, random_rotary
from bench.gpu.kernel_rows import KernelRows
from bench.gpu.parity import attention_in_fp64, causal_in_fp64, near
from xverse_kernels.kv_rows import Int8Rows, Rows, read_rows, row_bytes, to_int8
from xverse_kernels.triton import attention
from xverse_kernels.triton.tiles import GemmTile

PASTS = (128, 1024, 4096, 8192)  # of a token
SPANS = ((64, 0), (512, 0), (64, 4096), (512, 1536), (512, 7168))  # tokens, past
CAPACITY = 8192 + 16
PREFILL_TILES = (
    GemmTile(128, 64, 0, 8, 3),
    GemmTile(64, 64, 0, 4, 3),
    GemmTile(128, 128, 0, 8, 2),
    GemmTile(128, 64, 0, 4, 3),
)
# positions a block, warps, parts of the past
DECODE_TILES = ((64, 4, 8), (64, 4, 16), (32, 2, 16), (32, 2, 32), (32, 2, 64), (64, 4, 32))
Caches = list[tuple[Rows, Rows]]  # of several layers: keys and values


def measure_attention(bench: KernelRows) -> None:
    """With a cache in the dtype of activations, and in int8."""
    shape = bench.shape
    size = 2 * shape.heads * CAPACITY * row_bytes(shape.dim, torch.int8)
    one = (1, shape.heads, CAPACITY, shape.dim)
    plain: Caches = [(shape.randn(*one), shape.randn(*one)) for _ in range(shape.copies(size))]
    tiles = {
        f", {tile.m} x {tile.n}, {tile.warps} warps": partial(
            attention.prefill_attention, tile=tile
        )
        for tile in PREFILL_TILES
    }
    _decode(bench, "attention", plain, shape.dtype)
    _prefill(
        bench, "attention", plain, shape.dtype, {", torch": attention.torch_attention, **tiles}
    )
    rounded: Caches = [(to_int8(k), to_int8(v)) for k, v in plain]
    name = "attention, int8 cache"
    _decode(bench, name, rounded, torch.int8)
    _prefill(bench, name, rounded, torch.int8, {"": attention.prefill_attention})


def shorter(caches: Caches, capacity: int, dtype: torch.dtype, shape: Shape) -> Caches:
    """The same memory as caches of fewer positions: as many as no cache of the device holds."""
    size = 2 * shape.heads * capacity * row_bytes(shape.dim, dtype)
    found: Caches = []
    for keys, values in caches:
        found += zip(_cut(keys, capacity), _cut(values, capacity), strict=True)
        if len(found) >= shape.copies(size):
            break
    return found[: shape.copies(size)]


def _cut(rows: Rows, capacity: int) -> list[Rows]:
    if isinstance(rows, Int8Rows):
        return [
            Int8Rows(*pair) for pair in zip(*(_pieces(one, capacity) for one in rows), strict=True)
        ]
    return list(_pieces(rows, capacity))


def _pieces(one: Tensor, capacity: int) -> tuple[Tensor, ...]:
    """[1, heads, positions, ...] as many of [1, heads, capacity, ...]."""
    shape = (1, one.shape[1], capacity, *one.shape[3:])
    size = torch.Size(shape).numel()
    whole = one.numel() // size
    return tuple(one.flatten()[: whole * size].view(whole, *shape).unbind())


def _decode(bench: KernelRows, name: str, caches: Caches, dtype: torch.dtype) -> None:
    shape = bench.shape
    rotary = random_rotary(CAPACITY, shape)
    qkv = shape.randn(1, 3 * shape.heads * shape.dim)
    sequences = torch.zeros(1, device=shape.device, dtype=torch.int32)
    for past in PASTS:
        some = shorter(caches, past + 16, dtype, shape)
        check = near(attention_in_fp64(qkv, rotary, *some[0], 0, past))
        positions = torch.tensor([past], device=shape.device, dtype=torch.int32)
        size = 2 * past * shape.heads * row_bytes(shape.dim, dtype)
        for tile in (None, *DECODE_TILES) if past > 256 else (None,):
            calls = [
                lambda k=k, v=v, p=positions, past=past, tile=tile: attention.attend_each(
                    qkv, *rotary, k, v, p, sequences, bench.workspace, longest=past, tile=tile
                )
                for k, v in some
            ]
            title = name if tile is None else "{}, {} x {} warps, {} parts".format(name, *tile)
            bench.row(title, f"1 token, {past} past", calls, check, size)


def _prefill(
    bench: KernelRows,
    name: str,
    caches: Caches,
    dtype: torch.dtype,
    ways: dict[str, Callable[..., Tensor]],
) -> None:
    shape = bench.shape
    for tokens, past in SPANS:
        q = shape.randn(shape.heads, tokens, shape.dim)
        some = shorter(caches, past + tokens, dtype, shape)
        k, v = (read_rows(one, (0,), torch.float64) for one in some[0])
        check = near(causal_in_fp64(q, k, v, past))
        pairs = tokens * past + tokens * (tokens + 1) // 2
        size = 2 * (past + tokens) * shape.heads * row_bytes(shape.dim, dtype)
        flops = 4 * pairs * shape.heads * shape.dim
        for title, way in ways.items():
            calls = [
                lambda k=k, v=v, way=way, q=q, past=past: way(q, k, v, 0, past) for k, v in some
            ]
            bench.row(name + title, f"{tokens} tokens, {past} past", calls, check, size, flops)
