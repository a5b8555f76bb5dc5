"""Plain torch where the extension cannot compute: few tokens get the same bits in any split."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from xverse_kernels import reference
from xverse_kernels.kv_rows import Rows, read_rows, write_rows
from xverse_kernels.types import Rotary

MOST_ALONE = 16  # tokens that decoding ever computes at once


def in_exact_splits(operation: Callable[[slice], Tensor], tokens: int) -> Tensor:
    """The rows of an operation on rows, one by one where they are few."""
    parts = [operation(rows) for rows in exact_splits(tokens)]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def exact_splits(tokens: int) -> list[slice]:
    """Torch sums matrices of other heights in another order: few tokens go one by one."""
    if tokens > MOST_ALONE:
        return [slice(0, tokens)]
    return [slice(row, row + 1) for row in range(tokens)]


def attend_plainly(
    qkv: Tensor,
    rotary: Rotary,
    keys: Rows,
    values: Rows,
    sequences: Tensor,
    positions: Tensor,
) -> Tensor:
    """Token by token, so that what one gets does not depend on the others."""
    kv_heads, dim = keys.shape[1], keys.shape[3]
    rows = []
    for row, (sequence, place) in enumerate(
        zip(sequences.tolist(), positions.tolist(), strict=True)
    ):
        heads = qkv[row : row + 1].view(1, -1, dim)
        cos, sin = rotary.cos[place : place + 1], rotary.sin[place : place + 1]
        q = reference.rope(heads[:, : -2 * kv_heads], cos, sin)
        every, seen = slice(None), slice(place + 1)
        k = reference.rope(heads[:, -2 * kv_heads : -kv_heads], cos, sin)[0]
        write_rows(keys, (sequence, every, place), k)
        write_rows(values, (sequence, every, place), heads[0, -kv_heads:])
        k, v = (read_rows(one, (sequence, every, seen), q.dtype) for one in (keys, values))
        rows.append(reference.attention(q, k, v, place))
    return torch.cat(rows)
