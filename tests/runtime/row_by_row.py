"""The reference kernels with exact splits: every operation takes one token at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from xverse_kernels.reference_backend import ReferenceBackend
from xverse_kernels.types import Norm, Projection, Rotary, RoutedTokens, SwigluWeights
from xverse_runtime.config import EngineConfig
from xverse_runtime.engine import Engine

Between = Callable[[], None] | None


class RowByRow(ReferenceBackend):
    """See `KernelBackend`."""

    exact_splits = True

    def linear(
        self,
        x: Tensor,
        projections: Sequence[Projection],
        *,
        norm: Norm | None = None,
        residual: Tensor | None = None,
        out_dtype: torch.dtype | None = None,
        between: Between = None,
    ) -> Tensor:
        one = super().linear
        added = [None] * len(x) if residual is None else list(rows(residual))
        options: dict[str, Any] = {"norm": norm, "out_dtype": out_dtype, "between": between}
        return torch.cat(
            [
                one(row, projections, residual=more, **options)
                for row, more in zip(rows(x), added, strict=True)
            ]
        )

    def attend_span(
        self, qkv: Tensor, rotary: Rotary, keys: Tensor, values: Tensor, sequence: int, past: int
    ) -> Tensor:
        one = super().attend_span
        return torch.cat(
            [
                one(row, rotary, keys, values, sequence, past + after)
                for after, row in enumerate(rows(qkv))
            ]
        )

    def route(self, x: Tensor, norm: Norm, router: Tensor, top_k: int, shared: int) -> RoutedTokens:
        one = super().route
        each = [one(row, norm, router, top_k, shared) for row in rows(x)]
        fields = zip(*((r.normed, r.weights, r.expert_ids, r.logits) for r in each), strict=True)
        return RoutedTokens(*(torch.cat(field) for field in fields))

    def experts(
        self,
        routed: RoutedTokens,
        experts: Sequence[SwigluWeights],
        residual: Tensor,
        between: Between = None,
    ) -> Tensor:
        one = super().experts
        fields = (routed.normed, routed.weights, routed.expert_ids, routed.logits, residual)
        return torch.cat(
            [
                one(RoutedTokens(*parts), experts, more, between)
                for *parts, more in zip(*map(rows, fields), strict=True)
            ]
        )

    def mlp(
        self,
        x: Tensor,
        norm: Norm,
        experts: Sequence[SwigluWeights],
        residual: Tensor,
        between: Between = None,
    ) -> Tensor:
        one = super().mlp
        pairs = zip(rows(x), rows(residual), strict=True)
        return torch.cat([one(row, norm, experts, more, between) for row, more in pairs])


def rows(x: Tensor) -> Iterator[Tensor]:
    """Each row of [T, ...] as [1, ...], in memory of its own: where it begins may matter."""
    return (row.clone() for row in x.split(1))


def load_exact(path: Path, **config: Any) -> Engine:
    """An engine that computes row by row, so that tokens may be looked up."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "xverse_runtime.engine_parts.select_kernels", lambda *_args, **_packed: RowByRow()
        )
        return Engine.load(path, EngineConfig(device="cpu", **config))
