"""Compiles versions of kernels in a process of its own, which `compiling` starts as a script.

It reads pickles: a search path for modules and a ``GPUTarget``'s fields, then versions. It answers
each version with a line once it is in Triton's cache on disk, or cannot be. It imports no torch and
knows of no device. It ends with its input.
"""

from __future__ import annotations

import os
import pickle
import sys
from contextlib import suppress
from typing import Any, BinaryIO

DONE, FAILED = b"done\n", b"failed\n"
NICENESS = 10  # weights are loaded meanwhile


def main() -> None:
    answers = _private_output()
    if hasattr(os, "nice"):
        os.nice(NICENESS)
    requests = sys.stdin.buffer
    sys.path[:] = pickle.load(requests)
    from triton.backends.compiler import GPUTarget

    target = GPUTarget(*pickle.load(requests))
    while True:
        try:
            version = pickle.load(requests)
        except EOFError:
            return
        answers.write(DONE if _compile(version, target) else FAILED)
        answers.flush()


def _private_output() -> BinaryIO:
    """Standard output for answers alone: the compiler prints what it thinks of a kernel, which
    whoever launches it will see."""
    answers = os.fdopen(os.dup(1), "wb")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    return answers


def _compile(version: Any, target: Any) -> bool:
    from xverse_kernels.triton.versions import compile_version

    try:
        compiled = compile_version(version, target)
    except Exception:
        return False
    with suppress(Exception):  # the kernel is there all the same
        _compile_starter(compiled, target.backend)
    return True


def _compile_starter(compiled: Any, backend: str) -> None:
    """Up to triton 3.6 a C program starts each kernel, compiled and cached like the kernel."""
    if backend == "cuda":
        from triton.backends.nvidia import driver

        starter = driver.CudaLauncher
    else:
        from triton.backends.amd import driver

        starter = driver.HIPLauncher
    if hasattr(driver, "make_launcher"):
        starter(compiled.src, compiled.metadata)


if __name__ == "__main__":
    main()
