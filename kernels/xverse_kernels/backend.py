"""The operations a decoder needs, and the one place where their implementation is chosen."""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from xverse_kernels.kv_rows import Rows
from xverse_kernels.packing import ExpertBlocks
from xverse_kernels.types import (
    Norm,
    Parts,
    Projection,
    Rotary,
    RoutedTokens,
    SwigluWeights,
    TokenChoice,
)

NAMES = ("reference", "triton", "cpu")


class BackendUnavailableError(RuntimeError):
    """A backend that was asked for by name and cannot run; ``reason`` says why."""

    def __init__(self, backend: str, reason: str) -> None:
        super().__init__(f"{backend}: {reason}")
        self.backend = backend
        self.reason = reason


class KernelBackend(Protocol):
    """What one launch each does on a GPU. T tokens, H hidden width, S slots a token.

    Keys and values of all sequences are [sequences, kv_heads, capacity, head_dim], in the dtype of
    activations or in int8. What a token sees, its own key and value too, is what the cache keeps.
    """

    @property
    def name(self) -> str: ...

    @property
    def exact_splits(self) -> bool:
        """Whether what a token gets is the same to the last bit however tokens are split into
        calls."""

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
        """Linear layers side by side on the normed input, plus a residual: [T, sum of rows].

        The result has the dtype of x unless ``out_dtype`` says otherwise. ``between``: as in
        `experts`.
        """

    def attend_span(
        self, qkv: Tensor, rotary: Rotary, keys: Rows, values: Rows, sequence: int, past: int
    ) -> Tensor:
        """T consecutive tokens of one sequence, ``past`` tokens after its start.

        Rotates queries and keys, writes keys and values to the cache, attends causally:
        [T, (heads + 2 kv_heads) * head_dim] to [T, heads * head_dim].
        """

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
        """The same for one new token of each of T different sequences.

        ``sequences`` and ``positions`` int32 [T]; ``longest`` is at least every position.
        """

    def route(self, x: Tensor, norm: Norm, router: Tensor, top_k: int, shared: int) -> RoutedTokens:
        """Norm the residual stream [T, H] and choose experts; ``router`` [E, H] fp32."""

    def experts(
        self,
        routed: RoutedTokens,
        experts: Sequence[SwigluWeights],
        residual: Tensor,
        between: Callable[[], None] | None = None,
    ) -> Tensor:
        """``residual`` [T, H] plus the weighted sum of each token's experts, in its dtype.

        Experts whose table has no block (-1) add nothing; so the experts of a layer can be computed
        some after others, each call on the result of the one before, in an fp32 residual.
        ``between`` is called now and then where that costs nothing; what it raises abandons the
        computation.
        """

    def expert_parts(self, routed: RoutedTokens, experts: ExpertBlocks, out: Tensor) -> None:
        """Every slot's share alone, for few tokens: ``out`` fp32 [T, S, H] becomes weight times
        expert, and exact zeros where the experts' table has no block (-1).

        A share does not depend on which others are computed in the same call, nor on how tokens
        are split into calls.
        """

    def add_parts(
        self, residual: Tensor, expert_ids: Tensor, here: Sequence[Parts], rest: Tensor
    ) -> Tensor:
        """``residual`` [T, H] plus what every slot adds, slot after slot in fp32; in the residual's
        dtype.

        A slot is read where its expert was computed: from the first of ``here``, two at most, whose
        table has a block for it, or else from ``rest`` fp32 [T, S, H]. So the result does not
        depend on who computed which slot, and nothing else is read.

        Args:
            residual: in any dtype of activations.
            expert_ids: int [T, S], of the slots.
            here: what the device computed.
            rest: what came from elsewhere; where `reaches_host_memory` it may lie in pinned memory.
        """

    @property
    def reaches_host_memory(self) -> bool:
        """Whether `add_parts` and `copy_small` take pinned memory of the host where it lies."""

    def copy_small(self, copies: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Copy (source, target), five pairs at most, of as many elements each, to the target's
        dtype, in the order of computations.

        By a kernel where `reaches_host_memory`: it does not queue behind long copies, as what a
        copy engine does.
        """

    def mlp(
        self,
        x: Tensor,
        norm: Norm,
        experts: Sequence[SwigluWeights],
        residual: Tensor,
        between: Callable[[], None] | None = None,
    ) -> Tensor:
        """``residual`` plus the one MLP of a dense model, ``experts[0]``, on the normed input."""

    def sampler(self, sequences: int, vocab: int) -> TokenSampler | None:
        """What chooses tokens without the host, if this backend can."""


class TokenSampler(Protocol):
    """Chooses the next token of each of T sequences, on fixed buffers of the device."""

    @property
    def tokens(self) -> Tensor:
        """int64 [T]: what was chosen last; -1 where a logit was not finite."""

    def begin(self, row: int, history: Sequence[int], choice: TokenChoice) -> None:
        """A new text in sequence ``row``; raises ValueError for a choice that `can_draw` denies."""

    def can_draw(self, choice: TokenChoice) -> bool:
        """Whether tokens can be chosen this way."""

    def __call__(self, logits: Tensor, first: int = 0) -> Tensor:
        """Choose by logits fp32 [rows, vocab], remember the tokens as seen, and return `tokens`.

        The logits are those of the sequences from ``first`` on.
        """


def select_backend(requested: str, device: torch.device) -> KernelBackend:
    """Choose the kernels for a device; an explicit request is met or refused, never replaced.

    Args:
        requested: ``auto`` or the name of a backend.
        device: where the tensors live.

    Raises:
        BackendUnavailableError: no such backend, or it cannot run on this device.
    """
    if requested not in ("auto", *NAMES):
        choices = ", ".join(("auto", *NAMES))
        raise BackendUnavailableError(requested, f"no such backend; there is: {choices}")
    reasons = {"triton": why_not_triton, "cpu": why_not_cpu}
    for name, why_not in reasons.items():
        if requested not in ("auto", name):
            continue
        reason = why_not(device)
        if reason is None:
            return _make(name, device)
        if requested == name:
            raise BackendUnavailableError(requested, reason)
    return _make("reference", device)


def _make(name: str, device: torch.device) -> KernelBackend:
    """Only what is chosen is imported."""
    if name == "triton":
        from xverse_kernels.triton.backend import TritonBackend

        return TritonBackend(device)
    if name == "cpu":
        from xverse_kernels.cpu.backend import CpuBackend

        return CpuBackend()
    from xverse_kernels.reference_backend import ReferenceBackend

    return ReferenceBackend()


def why_not_cpu(device: torch.device) -> str | None:
    """The reason for which the C kernels cannot run on a device, if there is one."""
    if device.type != "cpu":
        return f"these kernels compute on the CPU, not on {device.type}"
    from xverse_kernels.cpu.extension import why_missing

    return why_missing()


def why_not_triton(device: torch.device) -> str | None:
    """The reason for which the Triton kernels cannot run on a device, if there is one."""
    try:
        import triton  # noqa: F401
    except ImportError:
        return "triton is not installed: pip install triton (Linux only)"
    from triton import knobs

    if device.type == "cpu":
        if knobs.runtime.interpret:
            return None
        return "Triton kernels need a GPU (on the CPU only under TRITON_INTERPRET=1, for tests)"
    if device.type != "cuda":
        return f"Triton kernels need a CUDA or ROCm device, not {device.type}"
    if torch.version.hip is None and torch.cuda.get_device_capability(device) < (7, 5):
        major, minor = torch.cuda.get_device_capability(device)
        return (
            f"Triton needs compute capability 7.5, this GPU has {major}.{minor}: compute on the CPU"
            " or on another GPU"
        )
    return _why_no_launcher()


def _why_no_launcher() -> str | None:
    """Triton compiles a small C program that starts its kernels."""
    compilers = [os.environ.get("CC", ""), "cc", "gcc", "clang"]
    if not any(shutil.which(one) for one in compilers if one):
        return "Triton needs a C compiler. Debian, Ubuntu: sudo apt install gcc"
    if not (Path(sysconfig.get_path("include")) / "Python.h").exists():
        package = f"python{sys.version_info.major}.{sys.version_info.minor}-dev"
        return f"Triton needs Python's header files. Debian, Ubuntu: sudo apt install {package}"
    return None
