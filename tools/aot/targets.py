"""The GPUs that kernels are compiled for, and what a program may use of each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from xverse_kernels.triton.tiles import MatrixUnit

if TYPE_CHECKING:
    from xverse_kernels.triton.launch import Abilities

KB = 1024


@dataclass(frozen=True)
class Target:
    """``capability`` of a CUDA device (0 on others); memory in bytes, of one program and of one
    multiprocessor; ``threads`` and ``registers`` of one multiprocessor."""

    name: str
    capability: int
    shared_memory: int
    shared_memory_total: int
    threads: int
    unit: MatrixUnit
    registers: int = 65536

    @property
    def is_cuda(self) -> bool:
        return self.capability > 0

    @property
    def device(self) -> tuple[str, int | str]:
        """As triton names it."""
        return ("cuda", self.capability) if self.is_cuda else ("hip", self.name)

    @property
    def abilities(self) -> Abilities:
        """What launchers choose versions by; imports the launchers."""
        from xverse_kernels.triton.launch import Abilities

        return Abilities(self.unit, self.capability)

    @property
    def pdl(self) -> bool:
        """Whether it has programmatic dependent launch."""
        return self.capability >= 90


# CUDA C++ Programming Guide, "Technical Specifications per Compute Capability".
TARGETS = {
    one.name: one
    for one in (
        Target("sm_75", 75, 64 * KB, 64 * KB, 1024, "mma"),
        Target("sm_80", 80, 163 * KB, 164 * KB, 2048, "mma"),
        Target("sm_86", 86, 99 * KB, 100 * KB, 1536, "mma"),
        Target("sm_89", 89, 99 * KB, 100 * KB, 1536, "mma"),
        Target("sm_90", 90, 227 * KB, 228 * KB, 2048, "wgmma"),
        Target("sm_100", 100, 227 * KB, 228 * KB, 2048, "tcgen05"),
        Target("sm_120", 120, 99 * KB, 100 * KB, 1536, "mma"),
        Target("gfx1100", 0, 64 * KB, 64 * KB, 2048, "wmma"),
    )
}
