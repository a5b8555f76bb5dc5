"""Versions of kernels and what came of compiling them. Importing this imports no kernel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

TYPE_NAMES = {
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.float32: "*fp32",
    torch.int8: "*i8",
    torch.int32: "*i32",
    torch.int64: "*i64",
}


@dataclass(frozen=True)
class Launch:
    """One compiled version of a kernel."""

    module: str
    kernel: str
    signature: tuple[tuple[str, str], ...]  # argument and type
    constants: tuple[tuple[str, Any], ...]
    warps: int
    stages: int
    pdl: bool
    registers: int | None = None  # at most

    @property
    def constant(self) -> dict[str, Any]:
        return dict(self.constants)

    @property
    def bits(self) -> int:
        """Of a weight; 0 for kernels without weights."""
        return int(self.constant.get("BITS", 0))

    @property
    def has_products(self) -> bool:
        """Whether it multiplies matrices."""
        return "DOT" in self.constant

    @property
    def threads(self) -> int:
        return 32 * self.warps

    @property
    def types(self) -> dict[str, str]:
        return dict(self.signature)


@dataclass(frozen=True)
class Build:
    """Counts of the machine code; bytes of memory. An ``error`` leaves the counts at zero."""

    target: str
    launch: Launch
    error: str = ""
    registers: int = 0
    stack: int = 0
    local_accesses: int = 0
    shared: int = 0
    instructions: int = 0
    wide_loads: int = 0
    matrix: int = 0
    matrix_names: tuple[str, ...] = ()
    tensor_memory: int = 0  # columns
    loop: int = 0  # instructions of the main loop
    loop_wide_loads: int = 0
    loop_half_loads: int = 0  # of 64 bits
    seconds: float = 0.0


class UnspecialisedError(AssertionError):
    """An integer argument that triton would specialise, so that versions differ by its value."""


def type_name(name: str, arg: Any, kernel: Any) -> str:
    """As triton's signatures spell it."""
    if isinstance(arg, Tensor):
        return TYPE_NAMES[arg.dtype]
    if isinstance(arg, float):
        return "fp32"
    if name not in kernel.do_not_specialize:
        raise UnspecialisedError(f"{kernel.__name__}: {name} is missing in do_not_specialize")
    return "i32"
