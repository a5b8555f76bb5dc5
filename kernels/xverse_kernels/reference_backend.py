"""The decoder's operations composed from those of `reference`: on any device, for any weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from xverse_kernels import reference
from xverse_kernels.kv_rows import Rows, read_rows, write_rows
from xverse_kernels.packing import ROWS, ExpertBlocks, PackedMatrix
from xverse_kernels.types import Norm, Parts, Projection, Rotary, RoutedTokens, SwigluWeights

# Multiplications, or weights to unpack, between two looks at whether to go on: a tenth of a second
# or less on a slow processor.
UNINTERRUPTED = 2**31
UNPACKED = 2**24


class ReferenceBackend:
    """Plain torch; see `KernelBackend` for what each operation means."""

    name = "reference"
    exact_splits = False  # torch sums matrices of other heights in another order
    reaches_host_memory = False

    def linear(
        self,
        x: Tensor,
        projections: Sequence[Projection],
        *,
        norm: Norm | None = None,
        residual: Tensor | None = None,
        out_dtype: torch.dtype | None = None,
        between: Callable[[], None] | None = None,
    ) -> Tensor:
        if norm is not None:
            x = normed_state(x, norm)
        parts = [
            reference.linear(x, weight, bias)
            for one in projections
            for weight, bias in _pieces(one, between)
        ]
        joined = parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)
        joined = joined if residual is None else residual + joined
        return joined if out_dtype is None else joined.to(out_dtype)

    def attend_span(
        self, qkv: Tensor, rotary: Rotary, keys: Rows, values: Rows, sequence: int, past: int
    ) -> Tensor:
        tokens, (_, kv_heads, _, dim) = qkv.shape[0], keys.shape
        end = past + tokens
        heads = qkv.view(tokens, -1, dim)
        cos, sin = rotary.cos[past:end], rotary.sin[past:end]
        q = reference.rope(heads[:, : -2 * kv_heads], cos, sin)
        k = reference.rope(heads[:, -2 * kv_heads : -kv_heads], cos, sin)
        every, new, seen = slice(None), slice(past, end), slice(end)
        write_rows(keys, (sequence, every, new), k.transpose(0, 1))
        write_rows(values, (sequence, every, new), heads[:, -kv_heads:].transpose(0, 1))
        k, v = (read_rows(one, (sequence, every, seen), q.dtype) for one in (keys, values))
        return reference.attention(q, k, v, past)

    def attend_each(
        self,
        qkv: Tensor,
        rotary: Rotary,
        keys: Rows,
        values: Rows,
        sequences: Tensor,
        positions: Tensor,
        longest: int,
    ) -> Tensor:
        rows = zip(sequences.tolist(), positions.tolist(), strict=True)
        return torch.cat(
            [
                self.attend_span(qkv[row : row + 1], rotary, keys, values, sequence, position)
                for row, (sequence, position) in enumerate(rows)
            ]
        )

    def route(self, x: Tensor, norm: Norm, router: Tensor, top_k: int, shared: int) -> RoutedTokens:
        normed = normed_state(x, norm)
        routing = reference.route(normed, router, top_k)
        tokens, experts = x.shape[0], router.shape[0]
        shared_ids = torch.arange(experts, experts + shared, device=x.device)
        return RoutedTokens(
            normed,
            torch.cat((routing.weights, routing.weights.new_ones(tokens, shared)), dim=1),
            torch.cat((routing.expert_ids, shared_ids.expand(tokens, shared)), dim=1),
            routing.logits,
        )

    def experts(
        self,
        routed: RoutedTokens,
        experts: Sequence[SwigluWeights],
        residual: Tensor,
        between: Callable[[], None] | None = None,
    ) -> Tensor:
        return residual + reference.moe(
            routed.normed, routed.weights, routed.expert_ids, experts, between
        )

    def expert_parts(self, routed: RoutedTokens, experts: ExpertBlocks, out: Tensor) -> None:
        out.copy_(reference.expert_parts(routed.normed, routed.weights, routed.expert_ids, experts))

    def add_parts(
        self, residual: Tensor, expert_ids: Tensor, here: Sequence[Parts], rest: Tensor
    ) -> Tensor:
        return reference.add_parts(residual, expert_ids, here, rest)

    def copy_small(self, copies: Sequence[tuple[Tensor, Tensor]]) -> None:
        for source, target in copies:
            target.copy_(source)

    def mlp(
        self,
        x: Tensor,
        norm: Norm,
        experts: Sequence[SwigluWeights],
        residual: Tensor,
        between: Callable[[], None] | None = None,
    ) -> Tensor:
        normed, weights = normed_state(x, norm), experts[0]
        tokens = max(1, UNINTERRUPTED // (3 * weights.gate.numel()))
        parts = []
        for some in torch.split(normed, tokens):
            if between is not None:
                between()
            parts.append(reference.swiglu(some, weights))
        return residual + (parts[0] if len(parts) == 1 else torch.cat(parts))

    def sampler(self, sequences: int, vocab: int) -> None:
        """None: the runtime's own functions choose tokens."""


def normed_state(x: Tensor, norm: Norm) -> Tensor:
    """The norm of a residual stream that may be wider, in the dtype of the norm's weight."""
    return reference.rms_norm(x, norm.weight, norm.eps).to(norm.weight.dtype)


def _pieces(
    projection: Projection, between: Callable[[], None] | None
) -> Iterator[tuple[Tensor | PackedMatrix, Tensor | None]]:
    """A layer's weight and bias; of a large packed one some rows after the others."""
    weight, bias = projection
    if not isinstance(weight, PackedMatrix):
        yield weight, bias
        return
    rows = max(ROWS, UNPACKED // weight.columns // ROWS * ROWS)
    for first in range(0, weight.rows, rows):
        if between is not None:
            between()
        last = min(first + rows, weight.rows)
        yield weight.row_slice(first, last), None if bias is None else bias[first:last]
