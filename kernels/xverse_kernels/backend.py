"""The operations a model needs, and the one place where their implementation is chosen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from xverse_kernels import reference
from xverse_kernels.packing import PackedMatrix
from xverse_kernels.types import Routing, SwigluWeights


class BackendUnavailableError(RuntimeError):
    """A backend that was asked for by name and cannot run; ``reason`` says why."""

    def __init__(self, backend: str, reason: str) -> None:
        super().__init__(f"{backend}: {reason}")
        self.backend = backend
        self.reason = reason


class KernelBackend(Protocol):
    """Shapes and meaning of each operation: see the function of that name in `reference`."""

    @property
    def name(self) -> str: ...

    def linear(
        self, x: Tensor, weight: Tensor | PackedMatrix, bias: Tensor | None = None
    ) -> Tensor: ...

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor: ...

    def rope(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor: ...

    def attention(self, q: Tensor, k: Tensor, v: Tensor, past: int) -> Tensor: ...

    def route(self, x: Tensor, weight: Tensor, top_k: int) -> Routing: ...

    def swiglu(self, x: Tensor, mlp: SwigluWeights) -> Tensor: ...

    def moe(
        self,
        x: Tensor,
        weights: Tensor,
        expert_ids: Tensor,
        experts: Sequence[SwigluWeights],
        between_experts: Callable[[], None] | None = None,
    ) -> Tensor: ...


class ReferenceBackend:
    """Plain torch on any device."""

    name = "reference"
    linear = staticmethod(reference.linear)
    rms_norm = staticmethod(reference.rms_norm)
    rope = staticmethod(reference.rope)
    attention = staticmethod(reference.attention)
    route = staticmethod(reference.route)
    swiglu = staticmethod(reference.swiglu)
    moe = staticmethod(reference.moe)


def select_backend(requested: str, device: torch.device) -> KernelBackend:
    """Choose the kernels for a device; an explicit request is met or refused, never replaced.

    Args:
        requested: ``auto`` or the name of a backend.
        device: where the tensors live.

    Raises:
        BackendUnavailableError: no such backend, or it cannot run on this device.
    """
    if requested in ("auto", ReferenceBackend.name):
        return ReferenceBackend()
    raise BackendUnavailableError(
        requested, f"no such backend on {device.type}; there is: auto, {ReferenceBackend.name}"
    )
