"""The decoder's operations on Triton kernels, and on torch where torch is faster."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from xverse_kernels.kv_rows import Rows
from xverse_kernels.packing import ExpertBlocks, PackedMatrix
from xverse_kernels.triton import attention, experts, linear, parts
from xverse_kernels.triton.launch import Workspace, abilities
from xverse_kernels.triton.products import experts_by_torch
from xverse_kernels.triton.sampling import DeviceSampler
from xverse_kernels.triton.tiles import (
    experts_each_tokens,
    gemv_tokens,
)
from xverse_kernels.types import Norm, Parts, Projection, Rotary, RoutedTokens, SwigluWeights


class TritonBackend:
    """See `KernelBackend`. Weights are contiguous matrices, packed matrices and expert blocks."""

    name = "triton"
    exact_splits = False
    reaches_host_memory = True

    def __init__(self, device: torch.device, *, by_torch: bool | None = None) -> None:
        """``by_torch``: whether torch makes all products of many tokens, as it should where Triton
        has no matrix instructions; by default as the device is."""
        self._workspace = Workspace(device)
        able = abilities(device)
        self._pdl = able.pdl
        self._by_torch = not able.multiplies if by_torch is None else by_torch

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
        if len(projections) > 1:
            assert residual is None
            pieces = [self.linear(x, [one], norm=norm, out_dtype=out_dtype) for one in projections]
            return torch.cat(pieces, dim=-1)
        weight, bias = projections[0]
        bits = weight.form.bits if isinstance(weight, PackedMatrix) else 8 * weight.element_size()
        if x.shape[0] <= gemv_tokens(bits):
            return linear.gemv(
                x,
                weight,
                self._workspace,
                norm=None if norm is None else norm.weight,
                eps=0.0 if norm is None else norm.eps,
                bias=bias,
                residual=residual,
                out_dtype=out_dtype,
                pdl=self._pdl,
            )
        if norm is not None:
            x = experts.normed_state(x, norm.weight, norm.eps)
        dense = linear.dequantise(weight, x.dtype) if isinstance(weight, PackedMatrix) else weight
        if residual is None or bias is not None or residual.dtype != x.dtype:
            y = F.linear(x, dense, bias)
            y = y if residual is None else residual + y
        else:
            y = torch.addmm(residual, x, dense.t())
        return y if out_dtype is None else y.to(out_dtype)

    def attend_span(
        self, qkv: Tensor, rotary: Rotary, keys: Rows, values: Rows, sequence: int, past: int
    ) -> Tensor:
        return attention.attend_span(
            qkv, rotary.cos, rotary.sin, keys, values, sequence, past, by_torch=self._by_torch
        )

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
        return attention.attend_each(
            qkv,
            rotary.cos,
            rotary.sin,
            keys,
            values,
            positions,
            sequences,
            self._workspace,
            longest=longest,
            pdl=self._pdl,
        )

    def route(self, x: Tensor, norm: Norm, router: Tensor, top_k: int, shared: int) -> RoutedTokens:
        return experts.route(
            x, norm.weight, norm.eps, router, top_k, shared, self._workspace, pdl=self._pdl
        )

    def experts(
        self,
        routed: RoutedTokens,
        experts_: Sequence[SwigluWeights],
        residual: Tensor,
        between: Callable[[], None] | None = None,
    ) -> Tensor:
        blocks = _blocks(experts_)
        bits, tokens = blocks.layout.form.bits, routed.normed.shape[0]
        if tokens > experts_each_tokens(bits, by_torch=self._by_torch):
            if not self._by_torch:
                return experts.experts_grouped(routed, blocks, residual)
            if not _is_captured(residual):
                return experts_by_torch(routed, blocks, residual)
        h = experts.gate_up_each(routed, blocks, pdl=self._pdl)
        return experts.down_each(h, routed, blocks, residual, self._workspace, pdl=self._pdl)

    def expert_parts(self, routed: RoutedTokens, experts_: ExpertBlocks, out: Tensor) -> None:
        h = experts.gate_up_each(routed, experts_, pdl=self._pdl)
        parts.down_parts(h, routed, experts_, out, pdl=self._pdl)

    def add_parts(
        self, residual: Tensor, expert_ids: Tensor, here: Sequence[Parts], rest: Tensor
    ) -> Tensor:
        return parts.add_parts(residual, expert_ids, here, rest, pdl=self._pdl)

    def copy_small(self, copies: Sequence[tuple[Tensor, Tensor]]) -> None:
        parts.copy_small(copies, self._workspace.counters.device, pdl=self._pdl)

    def mlp(
        self,
        x: Tensor,
        norm: Norm,
        experts_: Sequence[SwigluWeights],
        residual: Tensor,
        between: Callable[[], None] | None = None,
    ) -> Tensor:
        tokens = x.shape[0]
        routed = RoutedTokens(
            experts.normed_state(x, norm.weight, norm.eps),
            torch.ones(tokens, 1, dtype=norm.weight.dtype, device=x.device),
            torch.zeros(tokens, 1, dtype=torch.int32, device=x.device),
            x.new_empty(tokens, 0, dtype=torch.float32),
        )
        return self.experts(routed, experts_, residual)

    def sampler(self, sequences: int, vocab: int) -> DeviceSampler:
        return DeviceSampler(sequences, vocab, self._workspace.device)


def _is_captured(x: Tensor) -> bool:
    """Whether a CUDA graph is being made, in which the host cannot wait."""
    return x.device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def _blocks(experts_: Sequence[SwigluWeights]) -> ExpertBlocks:
    if not isinstance(experts_, ExpertBlocks):
        raise TypeError("Triton kernels take experts as packed blocks")
    return experts_
