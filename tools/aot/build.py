"""Compiling one version of a kernel for one target, and counting what came out."""

from __future__ import annotations

import importlib
import re
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from tools.aot import sass
from tools.aot.targets import Target
from tools.aot.types import Build, Launch

CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
AMD_WIDE_LOADS = ("global_load_b128", "buffer_load_b128")


def build(launch: Launch, target: Target) -> Build:
    """Compile and count. A kernel that the compiler refuses is a result too."""
    begun = time.perf_counter()
    try:
        compiled = compile_launch(launch, target)
        counts = _cuda_counts(compiled) if target.is_cuda else _amd_counts(compiled)
    except Exception as error:
        return Build(target.name, launch, error=f"{type(error).__name__}: {error}"[:400])
    return Build(target.name, launch, seconds=time.perf_counter() - begun, **counts)


def compile_launch(launch: Launch, target: Target) -> Any:
    """As triton's own launch would: every pointer aligned to 16 bytes, no integer specialised."""
    kernel = getattr(importlib.import_module(launch.module), launch.kernel)
    names, constants = list(kernel.arg_names), launch.constant
    signature = {**launch.types, **dict.fromkeys(constants, "constexpr")}
    source = ASTSource(
        kernel,
        signature,
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={
            (place,): [["tt.divisibility", 16]]
            for place, name in enumerate(names)
            if signature[name].startswith("*")
        },
    )
    options = {
        "num_warps": launch.warps,
        "num_stages": launch.stages,
        "enable_fp_fusion": True,  # triton's default, which its environment variables change
        **({"launch_pdl": True} if launch.pdl else {}),
        **({"maxnreg": launch.registers} if launch.registers and target.is_cuda else {}),
    }
    device = ("cuda", target.capability) if target.is_cuda else ("hip", target.name)
    return triton.compile(source, target=GPUTarget(*device, 32), options=options)


def _cuda_counts(compiled: Any) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(compiled.asm["cubin"])
        usage, listing = (
            subprocess.run(
                [CUOBJDUMP, option, cubin], capture_output=True, text=True, check=True
            ).stdout
            for option in ("-res-usage", "-sass")
        )
    used = re.search(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", usage)
    assert used is not None, usage
    registers, stack, static, local = map(int, used.groups())
    code = sass.parse(listing)
    loop = sass.main_loop(code)
    return {
        "registers": registers,
        "stack": stack + local,
        "local_accesses": sass.count(sass.LOCAL, code),
        "shared": static + compiled.metadata.shared,
        "instructions": len(code),
        "wide_loads": sass.count(sass.WIDE_LOAD, code),
        "matrix": sass.count(sass.MATRIX, code),
        "matrix_names": sass.matrix_names(code),
        "tensor_memory": getattr(compiled.metadata, "tmem_size", None) or 0,
        "loop": len(loop),
        "loop_wide_loads": sass.count(sass.WIDE_LOAD, loop),
        "loop_half_loads": sass.count(sass.HALF_LOAD, loop),
    }


def _amd_counts(compiled: Any) -> dict[str, Any]:
    text = compiled.asm["amdgcn"]

    def number(pattern: str) -> int:
        found = re.search(pattern, text)
        assert found is not None, f"no {pattern} in the assembly"
        return int(found[1])

    instructions = re.findall(r"^\t([a-z]\w+)\b", text, re.MULTILINE)
    return {
        "registers": number(r"\.vgpr_count:\s+(\d+)"),
        "stack": number(r"\.private_segment_fixed_size:\s+(\d+)"),
        "local_accesses": number(r"\.vgpr_spill_count:\s+(\d+)"),
        "shared": max(number(r"\.group_segment_fixed_size:\s+(\d+)"), compiled.metadata.shared),
        "instructions": len(instructions),
        "wide_loads": sum(name in AMD_WIDE_LOADS for name in instructions),
        "matrix": sum(name.startswith("v_wmma") for name in instructions),
    }
