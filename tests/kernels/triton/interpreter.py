"""Triton in its interpreter, and what the tests of kernels share."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.kernels.poison import NAN, POISON_INT, poison_of  # noqa: F401  (for the tests)
from xverse_kernels.packing import ExpertBlocks, ExpertLayout, WeightFormat
from xverse_kernels.types import RoutedTokens, SwigluWeights

# Read when triton's modules are imported; other tests must find the environment as it was.
with pytest.MonkeyPatch.context() as _environment:
    _environment.setenv("TRITON_INTERPRET", "1")
    triton = pytest.importorskip("triton")
    tl = import_module("triton.language")
    for _name in ("backend", "sampling"):  # these two import all others
        import_module(f"xverse_kernels.triton.{_name}")

    @triton.jit
    def uniform_kernel(seeds_ptr, steps_ptr, out_ptr):  # type: ignore[no-untyped-def]
        """The random numbers that decide draws (grid: sequences), to out fp32."""
        row = tl.program_id(0)
        seed, step = tl.load(seeds_ptr + row), tl.load(steps_ptr + row)
        tl.store(out_ptr + row, tl.rand(seed, step.to(tl.int32)))


def _spare_the_interpreter() -> None:
    """Without what triton 3.7's interpreter does in vain, which is half of its time.

    At every call of a function by a kernel it looks through the whole language for functions to
    replace: here it knows their names. Sums and products of integers are computed once more in 64
    bits for a check whose result it throws away, as ``debug`` is off.
    """
    interpreter = triton.runtime.interpreter
    names: dict[Any, list[str]] = {}

    def patch_builtins(package: Any, *how: Any) -> None:
        if package not in names:
            found = inspect.getmembers(package, tl.core.is_builtin)
            names[package] = [name for name, _ in found]
        for name in names[package]:
            if tl.core.is_builtin(member := getattr(package, name)):
                interpreter._patch_attr(package, name, member, *how)

    interpreter._patch_builtin = patch_builtins
    builder = interpreter.interpreter_builder
    if not builder.options.debug:
        builder.options = replace(builder.options, sanitize_overflow=False)


_spare_the_interpreter()

CPU = torch.device("cpu")
GUARD = 4096  # elements: a stray tile still falls into it
# Norms of errors relative to norms of results, the reference in fp32 on the same inputs. Results in
# fp16 are rounded once or twice. bf16 is storage only: the interpreter cuts it instead of rounding.
LIMITS = {torch.float32: 2e-6, torch.float16: 8e-4, torch.bfloat16: 1e-2}
FLOATS = list(LIMITS)
HALF_AND_FULL = [torch.float32, torch.float16]


def name_of(value: Any) -> str | None:
    """Test ids of dtypes and weight formats."""
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    return value.name if isinstance(value, WeightFormat) else None


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """NaN, which is below no limit, where anything poisoned was left or read."""
    difference = (actual.double() - expected.double()).norm()
    return float(difference / expected.double().norm())


def guarded(tensor: Tensor) -> Tensor:
    """A copy between poison: whoever reads before or behind it gets NaN."""
    buffer = torch.full((tensor.numel() + 2 * GUARD,), poison_of(tensor.dtype), dtype=tensor.dtype)
    inner = buffer[GUARD : GUARD + tensor.numel()].view(tensor.shape)
    return inner.copy_(tensor)


def with_gaps(tensor: Tensor) -> Tensor:
    """The same values, each with a copy behind it: what kernels refuse."""
    return torch.stack((tensor, tensor), dim=-1)[..., 0]


class PoisonedTorch:
    """torch for launchers: `empty` is poison, and what lies around an allocation is watched."""

    def __init__(self) -> None:
        self._buffers: list[tuple[Tensor, Tensor]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    def empty(self, *shape: Any, dtype: torch.dtype, device: torch.device) -> Tensor:
        if device.type == "meta":
            return torch.empty(*shape, dtype=dtype, device=device)
        inner = guarded(torch.full(shape, poison_of(dtype), dtype=dtype, device=device))
        return self._watched(inner)

    def empty_like(self, tensor: Tensor) -> Tensor:
        return self.empty(*tensor.shape, dtype=tensor.dtype, device=tensor.device)

    def zeros(self, *shape: Any, dtype: torch.dtype, device: torch.device) -> Tensor:
        if device.type == "meta":
            return torch.zeros(*shape, dtype=dtype, device=device)
        return self._watched(guarded(torch.zeros(shape, dtype=dtype, device=device)))

    def _watched(self, inner: Tensor) -> Tensor:
        whole = torch.as_strided(inner, (inner.numel() + 2 * GUARD,), (1,), storage_offset=0)
        self._buffers.append((whole[:GUARD], whole[GUARD + inner.numel() :]))
        return inner

    def check_guards(self) -> None:
        """Nothing was written outside of any allocation."""
        for guard in (one for pair in self._buffers for one in pair):
            poison = torch.full_like(guard, poison_of(guard.dtype))
            assert torch.equal(guard.nan_to_num(7.5), poison.nan_to_num(7.5))


def pack_experts(
    count: int,
    hidden: int,
    width: int,
    form: WeightFormat,
    *,
    table: Sequence[int] | None = None,
    blocks: int | None = None,
    filler: int = 0xFF,
) -> ExpertBlocks:
    """Random experts. With a table, expert e lies in block ``table[e]`` of a pool of ``blocks``,
    and every block that is nobody's, and the memory before and behind the pool, has the bytes
    ``filler``: NaN unless told otherwise."""
    layout = ExpertLayout(hidden, width, form)
    places = list(range(count)) if table is None else list(table)
    size = blocks or max(places) + 1
    pool = torch.full((size + 2, layout.block_bytes), filler, dtype=torch.uint8)
    for expert, place in enumerate(places):
        if place >= 0:
            pool[1 + place] = layout.pack(random_expert(expert, hidden, width))
    return ExpertBlocks(pool[1:-1], layout, torch.float32, torch.tensor(places, dtype=torch.int32))


def random_expert(number: int, hidden: int, width: int) -> SwigluWeights:
    return SwigluWeights(
        randn(width, hidden, seed=3 * number) * 2 / hidden**0.5,
        randn(width, hidden, seed=3 * number + 1) * 2 / hidden**0.5,
        randn(hidden, width, seed=3 * number + 2) / width**0.5,
    )


def route_randomly(
    tokens: int, hidden: int, experts: int, slots: int, dtype: torch.dtype = torch.float32
) -> RoutedTokens:
    """Different experts for each token, and weights; no router was asked."""
    source = torch.Generator().manual_seed(tokens)
    ids = torch.stack([torch.randperm(experts, generator=source)[:slots] for _ in range(tokens)])
    weights = randn(tokens, slots, seed=5).softmax(-1)
    return routed_to(ids, hidden, dtype)._replace(weights=guarded(weights.to(dtype)))


def routed_to(ids: Tensor, hidden: int, dtype: torch.dtype = torch.float32) -> RoutedTokens:
    """Tokens whose slots are these experts, with weights of one."""
    normed = guarded(randn(ids.shape[0], hidden, seed=6).to(dtype))
    weights = torch.ones(ids.shape, dtype=dtype)
    return RoutedTokens(normed, weights, ids.to(torch.int32), torch.empty(0))
