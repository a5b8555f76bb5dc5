"""The C kernels without Python: compiled with native_test.c, under sanitizers and for arm64.

native_test compares every instruction set that the processor has with double precision, and prints
one line a set; see there.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
NATIVE = TESTS.parents[2] / "kernels" / "xverse_kernels" / "cpu" / "native"
# As in setup.py, where -O3 is the default.
FLAGS = ["-std=c11", "-D_GNU_SOURCE", "-ffp-contract=off", "-Wno-psabi", f"-I{NATIVE}"]
WARNINGS = ["-Wall", "-Wextra", "-Werror"]
SYSROOT = "/usr/aarch64-linux-gnu"

pytestmark = pytest.mark.skipif(os.name != "posix", reason="a program for POSIX threads")


def sources() -> list[Path]:
    """All but the Python module; what compiles longest comes first."""
    native = sorted(path for path in NATIVE.glob("*.c") if path.name != "module.c")
    native.sort(key=lambda path: path.name != "kernels_portable.c")
    return native + sorted(TESTS.glob("native_*.c"))


def need(*tools: str) -> str:
    """The path of the first one; without one of them the test is skipped."""
    for tool in tools:
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed; .ci/run names the packages")
    return str(shutil.which(tools[0]))


def run(*command: str | Path, timeout: int = 300) -> str:
    done = subprocess.run(
        [str(part) for part in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, f"status {done.returncode}\n{done.stdout[-8000:]}"
    return done.stdout


def need_library(compiler: str, flag: str, folder: Path) -> None:
    """Compilers come without the sanitizers' libraries on some systems."""
    source = folder / "empty.c"
    source.write_text("int main(void) { return 0; }\n", encoding="ascii")
    command = [compiler, flag, str(source), "-o", str(folder / "empty")]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip(f"{compiler} has no library for {flag}")


def build(compiler: str, folder: Path, *flags: str) -> Path:
    def compiled(source: Path) -> Path:
        out = folder / f"{source.stem}.o"
        run(compiler, *FLAGS, *flags, "-c", source, "-o", out)
        return out

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compiled, sources()))
    program = folder / "native_test"
    run(compiler, *flags, *objects, "-o", program, "-lpthread", "-lm")
    return program


def sets(output: str) -> list[str]:
    lines = [line.split() for line in output.splitlines()]
    return [line[1].rstrip(",") for line in lines if line[:1] == ["set"]]


def expected_sets() -> set[str]:
    """By what Linux says of the processor; elsewhere those that every processor has."""
    try:
        words = set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
    except OSError:
        return {"portable"}
    names = {"portable"}
    if platform.machine() in ("aarch64", "arm64"):
        return names | ({"neon-dotprod"} if "asimddp" in words else set())
    if {"avx512_vnni", "avx512vl", "avx512bw", "avx512dq"} <= words:
        names.add("avx512-vnni")
    if {"avx2", "fma"} <= words:
        names |= {"avx2", "avx-vnni"} if "avx_vnni" in words else {"avx2"}
    return names


@pytest.mark.slow
def test_every_set_is_right_and_stays_within_its_memory(tmp_path: Path) -> None:
    compiler = need("gcc")
    flag = "-fsanitize=address,undefined"
    need_library(compiler, flag, tmp_path)
    # With full -g, or -O2, gcc takes minutes.
    program = build(compiler, tmp_path, "-Og", "-g1", flag, "-fno-sanitize-recover=all")
    assert set(sets(run(program, "1", "12"))) == expected_sets()


@pytest.mark.slow
def test_threads_share_nothing_unordered(tmp_path: Path) -> None:
    compiler = need("gcc")
    flag = "-fsanitize=thread"
    need_library(compiler, flag, tmp_path)
    program = build(compiler, tmp_path, "-O1", "-g1", flag)
    # Its shadow memory does not fit every layout of addresses that Linux draws.
    fixed = ["setarch", platform.machine(), "-R"] if shutil.which("setarch") else []
    run(*fixed, program, "2", "6")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gcc", "clang"])
def test_the_extension_as_it_is_installed(name: str, tmp_path: Path) -> None:
    """No warnings with optimisation either, and many cases: undisturbed they are fast."""
    program = build(need(name), tmp_path, "-O3", *WARNINGS)
    for seed in range(3, 7):
        assert set(sets(run(program, str(seed), "60"))) >= {"portable"}


@pytest.mark.slow
def test_arm64(tmp_path: Path) -> None:
    compiler = need("aarch64-linux-gnu-gcc", "qemu-aarch64")
    program = build(compiler, tmp_path, "-O2", *WARNINGS, "-DEMULATED")
    emulator = ["qemu-aarch64", "-L", SYSROOT, "-cpu"]
    assert sets(run(*emulator, "max", program, "7", "6")) == ["neon-dotprod", "portable"]
    # An ARMv8.0 processor, which has no dot product.
    assert sets(run(*emulator, "cortex-a53", program, "7", "3")) == ["portable"]


@pytest.mark.parametrize("name", ["gcc", "clang", "aarch64-linux-gnu-gcc"])
def test_compilers_warn_of_nothing(name: str) -> None:
    run(need(name), *FLAGS, *WARNINGS, "-fsyntax-only", *sources())
