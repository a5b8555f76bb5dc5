"""Versions of kernels, and compiling them: by launchers, ahead of them, and without a device.

Whoever compiles a version asks for the same entry of Triton's cache on disk, in whatever process.
Importing this imports neither torch nor triton.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Version:
    """One compiled version of a kernel: what its machine code depends on, but for the device."""

    module: str
    kernel: str
    signature: tuple[tuple[str, str], ...]  # argument and type, as Triton spells it
    constants: tuple[tuple[str, Any], ...]  # in the kernel's order, after the arguments
    warps: int
    stages: int
    pdl: bool
    registers: int | None = None  # most of a thread; of NVIDIA's compiler alone

    @property
    def constant(self) -> dict[str, Any]:
        return dict(self.constants)

    @property
    def types(self) -> dict[str, str]:
        return dict(self.signature)

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


def compile_version(version: Version, target: Any) -> Any:
    """Compile for a ``GPUTarget``, or take from Triton's cache on disk what was compiled before.

    Every pointer is aligned to 16 bytes, and no integer is specialised.

    Returns:
        Triton's compiled kernel. No device is asked for until it is launched.
    """
    from triton.compiler import ASTSource

    return _compile(ASTSource, version, target)


def cached_version(version: Version, target: Any) -> Any | None:
    """What `compile_version` gives, if it is in the cache on disk; nothing is compiled."""
    from triton.compiler import ASTSource

    class Kept(ASTSource):  # type: ignore[misc]  # triton has no types
        """Has the key of the source it stands for, and cannot be compiled."""

        def make_ir(self, *_args: Any, **_options: Any) -> Any:
            raise _NotCachedError

    try:
        return _compile(Kept, version, target)
    except Exception:  # not there, or not whole: whoever needs it compiles it and sees the error
        return None


class _NotCachedError(Exception):
    """The compiler was about to begin."""


def _compile(source: Any, version: Version, target: Any) -> Any:
    import triton

    kernel = getattr(importlib.import_module(version.module), version.kernel)
    names, constants = list(kernel.arg_names), version.constant
    signature: Mapping[str, str] = {
        **version.types,
        **dict.fromkeys(constants, "constexpr"),
    }
    options = {
        "num_warps": version.warps,
        "num_stages": version.stages,
        "enable_fp_fusion": True,  # triton's default, which its environment variables change
        # AMD's compiler does not know these options
        **({"launch_pdl": True} if version.pdl else {}),
        **(
            {"maxnreg": version.registers} if version.registers and target.backend == "cuda" else {}
        ),
    }
    return triton.compile(
        source(
            kernel,
            signature,
            constexprs={(names.index(name),): value for name, value in constants.items()},
            attrs={
                (place,): [["tt.divisibility", 16]]
                for place, name in enumerate(names)
                if signature[name].startswith("*")
            },
        ),
        target=target,
        options=options,
    )
