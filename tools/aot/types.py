"""What came of compiling a version of a kernel. Importing this imports no kernel."""

from __future__ import annotations

from dataclasses import dataclass

from xverse_kernels.triton.versions import Version


@dataclass(frozen=True)
class Build:
    """Counts of the machine code; bytes of memory. An ``error`` leaves the counts at zero."""

    target: str
    launch: Version
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
