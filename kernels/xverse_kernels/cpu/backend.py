"""The decoder's operations on packed weights, one call of the C extension each.

Activations are fp32 throughout. What a token gets does not depend on the other tokens of a call,
nor on the number of threads: see ``native/kernels.h``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress

import torch
from torch import Tensor

from xverse_kernels.cpu.calls import LANES, add_experts, divides, numbers_of, put_parts
from xverse_kernels.cpu.extension import native
from xverse_kernels.cpu.plain import attend_plainly, exact_splits, in_exact_splits
from xverse_kernels.kv_rows import Int8Rows, Rows
from xverse_kernels.packing import ExpertBlocks, PackedMatrix
from xverse_kernels.reference_backend import ReferenceBackend, normed_state
from xverse_kernels.types import Norm, Parts, Projection, Rotary, RoutedTokens, SwigluWeights

LARGEST_HEAD = 256
CACHE_BITS = {torch.int8: 8, torch.bfloat16: 16, torch.float32: 32}


class CpuBackend:
    """See `KernelBackend` for what each operation means.

    Weights that are not packed, and shapes that vectors of 16 do not divide, are left to plain
    torch, operation by operation; there a prompt may differ in its last bits from its tokens alone.
    """

    name = "cpu"
    exact_splits = True
    reaches_host_memory = False

    def __init__(self, instructions: str | None = None) -> None:
        """``instructions``: one of `instruction_sets`; by default the fastest."""
        native.use(instructions or native.names()[0])
        self.instructions = instructions or native.names()[0]
        self._plain = ReferenceBackend()
        self._plans: dict[int, tuple[object, tuple[tuple[int, ...], int] | None]] = {}

    def set_threads(self, count: int) -> int:
        """Compute with ``count`` threads, or as many as the system starts; returns their number."""
        with suppress(OSError):
            native.set_threads(count)
        return int(native.threads())

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
        if between is not None:
            between()
        plan = self._plan(projections)
        scale = None if norm is None else norm.weight
        if plan is None and len(projections) > 1:
            parts = [self.linear(x, [one], norm=norm, between=between) for one in projections]
            joined = torch.cat(parts, dim=1)
            joined = joined if residual is None else residual + joined
            return joined if out_dtype is None else joined.to(out_dtype)
        if plan is None or not _all_fp32(x, scale, residual):
            return self._plain_linear(x, projections, norm, residual, out_dtype, between)
        matrices, rows = plan
        x = x.contiguous()
        tokens, columns = x.shape
        out = torch.empty(tokens, rows)
        if residual is not None:
            residual = residual.contiguous()
        native.linear(
            0.0 if norm is None else norm.eps,
            x.data_ptr(),
            0 if norm is None else norm.weight.data_ptr(),
            0 if residual is None else residual.data_ptr(),
            out.data_ptr(),
            tokens,
            columns,
            *matrices,
        )
        return out if out_dtype is None or out_dtype == torch.float32 else out.to(out_dtype)

    def _plan(self, projections: Sequence[Projection]) -> tuple[tuple[int, ...], int] | None:
        """`numbers_of`, looked up for the tuples that a model keeps: tokens take microseconds."""
        if not isinstance(projections, tuple):
            return numbers_of(projections)
        known = self._plans.get(id(projections))
        if known is None:  # keeping the tuple keeps its id from being given to another
            known = self._plans[id(projections)] = (projections, numbers_of(projections))
        return known[1]

    def _plain_linear(
        self,
        x: Tensor,
        projections: Sequence[Projection],
        norm: Norm | None,
        residual: Tensor | None,
        out_dtype: torch.dtype | None,
        between: Callable[[], None] | None,
    ) -> Tensor:
        alike = [
            Projection(
                one.weight if isinstance(one.weight, PackedMatrix) else one.weight.to(x.dtype),
                None if one.bias is None else one.bias.to(x.dtype),
            )
            for one in projections
        ]

        def some(rows: slice) -> Tensor:
            added = None if residual is None else residual[rows]
            return self._plain.linear(
                x[rows], alike, norm=norm, residual=added, out_dtype=out_dtype, between=between
            )

        return in_exact_splits(some, x.shape[0])

    def attend_span(
        self, qkv: Tensor, rotary: Rotary, keys: Rows, values: Rows, sequence: int, past: int
    ) -> Tensor:
        return self._attend(qkv, rotary, keys, values, None, None, sequence, past)

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
        return self._attend(qkv, rotary, keys, values, sequences, positions, 0, 0)

    def _attend(
        self,
        qkv: Tensor,
        rotary: Rotary,
        keys: Rows,
        values: Rows,
        sequences: Tensor | None,
        positions: Tensor | None,
        sequence: int,
        past: int,
    ) -> Tensor:
        """Of tokens at ``positions`` of ``sequences``, or after ``past`` others of one."""
        _, kv_heads, capacity, dim = keys.shape
        tokens, width = qkv.shape
        heads = width // dim - 2 * kv_heads
        (k, k_scales), (v, v_scales) = _parts_of(keys), _parts_of(values)
        fits = dim % LANES == 0 and dim <= LARGEST_HEAD and k.dtype in CACHE_BITS
        whole = all(one is None or one.is_contiguous() for one in (k, k_scales, v, v_scales))
        if not (fits and whole and qkv.dtype == torch.float32):
            if sequences is None or positions is None:
                sequences = torch.full((tokens,), sequence)
                positions = torch.arange(past, past + tokens)
            return attend_plainly(qkv, rotary, keys, values, sequences, positions)
        qkv = qkv.contiguous()
        out = torch.empty(tokens, heads * dim)
        native.attend(
            qkv.data_ptr(),
            rotary.cos.data_ptr(),
            rotary.sin.data_ptr(),
            k.data_ptr(),
            v.data_ptr(),
            0 if k_scales is None else k_scales.data_ptr(),
            0 if v_scales is None else v_scales.data_ptr(),
            0 if sequences is None else sequences.data_ptr(),
            0 if positions is None else positions.data_ptr(),
            out.data_ptr(),
            capacity,
            tokens,
            heads,
            kv_heads,
            dim,
            CACHE_BITS[k.dtype],
            sequence,
            past,
        )
        return out

    def route(self, x: Tensor, norm: Norm, router: Tensor, top_k: int, shared: int) -> RoutedTokens:
        if not _all_fp32(x, norm.weight, router):
            rows = exact_splits(x.shape[0])
            parts = [self._plain.route(x[some], norm, router, top_k, shared) for some in rows]
            return RoutedTokens(*map(torch.cat, zip(*parts, strict=True)))
        x, router = x.contiguous(), router.contiguous()
        tokens, hidden = x.shape
        experts = router.shape[0]
        normed = torch.empty_like(x)
        logits = torch.empty(tokens, experts)
        weights = torch.empty(tokens, top_k + shared)
        ids = torch.empty(tokens, top_k + shared, dtype=torch.int64)
        native.route(
            norm.eps,
            x.data_ptr(),
            norm.weight.data_ptr(),
            router.data_ptr(),
            normed.data_ptr(),
            logits.data_ptr(),
            weights.data_ptr(),
            ids.data_ptr(),
            tokens,
            hidden,
            experts,
            top_k,
            shared,
        )
        return RoutedTokens(normed, weights, ids, logits)

    def experts(
        self,
        routed: RoutedTokens,
        experts: Sequence[SwigluWeights],
        residual: Tensor,
        between: Callable[[], None] | None = None,
    ) -> Tensor:
        if between is not None:
            between()
        fp32 = _all_fp32(routed.normed, routed.weights, residual)
        if not (isinstance(experts, ExpertBlocks) and divides(experts) and fp32):

            def some(rows: slice) -> Tensor:
                of_rows = RoutedTokens(*(part[rows] for part in routed))
                return self._plain.experts(of_rows, experts, residual[rows], between)

            return in_exact_splits(some, residual.shape[0])
        return add_experts(routed.normed, routed.weights, routed.expert_ids, experts, residual)

    def expert_parts(self, routed: RoutedTokens, experts: ExpertBlocks, out: Tensor) -> None:
        if not divides(experts):
            self._plain.expert_parts(routed, experts, out)
            return
        shape = (*routed.expert_ids.shape, experts.layout.hidden)
        if out.shape != shape or out.dtype != torch.float32 or not out.is_contiguous():
            raise ValueError(f"parts are a contiguous fp32 tensor of the shape {shape}")
        x, weights = routed.normed.float(), routed.weights.float()
        put_parts(x, weights, routed.expert_ids, experts, out)

    def add_parts(
        self, residual: Tensor, expert_ids: Tensor, here: Sequence[Parts], rest: Tensor
    ) -> Tensor:
        return self._plain.add_parts(residual, expert_ids, here, rest)

    def copy_small(self, copies: Sequence[tuple[Tensor, Tensor]]) -> None:
        self._plain.copy_small(copies)

    def mlp(
        self,
        x: Tensor,
        norm: Norm,
        experts: Sequence[SwigluWeights],
        residual: Tensor,
        between: Callable[[], None] | None = None,
    ) -> Tensor:
        if between is not None:
            between()
        fp32 = _all_fp32(x, norm.weight, residual)
        if not (isinstance(experts, ExpertBlocks) and divides(experts) and fp32):

            def some(rows: slice) -> Tensor:
                return self._plain.mlp(x[rows], norm, experts, residual[rows], between)

            return in_exact_splits(some, x.shape[0])
        normed = in_exact_splits(lambda rows: normed_state(x[rows], norm), x.shape[0])
        one = x.new_ones(x.shape[0], 1)
        first = torch.zeros(x.shape[0], 1, dtype=torch.int64)
        return add_experts(normed, one, first, experts, residual)

    def sampler(self, sequences: int, vocab: int) -> None:
        """None: the runtime's own functions choose tokens."""


def _all_fp32(*tensors: Tensor | None) -> bool:
    return all(one is None or one.dtype == torch.float32 for one in tensors)


def _parts_of(rows: Rows) -> tuple[Tensor, Tensor | None]:
    return rows if isinstance(rows, Int8Rows) else (rows, None)
