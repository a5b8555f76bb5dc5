"""llama.cpp on a CPU: built from source, on random Q4_0 weights in the true shape.

    python -m bench.peers.llama_cpp [--layers 4 12] [--threads N] [--cache DIR] [--in-place]

What is compared: a model of the same shape and 4.5 bits a weight, as our int4 with groups of 32
and fp16 scales, which repacks into Q4_0 bit by bit. Here head and embedding are Q4_0 too, so a
token reads 2.2 GB at 28 layers. Each figure is from a process of its own that loads the file from
the page cache and runs once, at a context of random tokens; `decode` feeds random tokens one by
one, `prefill` a batch of them. Loading is not in the time.

By default llama.cpp copies Q4_0 matrices into rows interleaved by eight when it loads them, which
takes the file's size in memory that the kernel cannot drop (the head excepted: 100534 rows are no
multiple of eight). ``in_place`` computes on the mapped file instead, as one must when the model
does not fit. Measure on a machine that does nothing else: with two threads on two cores, one busy
process beside them cut decoding to a third.

Needs a C++ compiler, cmake (ninja is used if there) and the package gguf; Unix only.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

from bench.peers.random_gguf import write_model

PACKAGE, VERSION = "llama-cpp-python", "0.3.36"
CMAKE_OPTIONS = {
    "CMAKE_BUILD_TYPE": "Release",
    "BUILD_SHARED_LIBS": "OFF",
    "GGML_NATIVE": "ON",
    "GGML_CUDA": "OFF",
    "LLAMA_CURL": "OFF",
    "LLAMA_OPENSSL": "OFF",
    "LLAMA_BUILD_APP": "OFF",
    "LLAMA_BUILD_EXAMPLES": "OFF",
    "LLAMA_BUILD_SERVER": "OFF",
    "LLAMA_BUILD_TESTS": "OFF",
    "LLAMA_BUILD_UI": "OFF",
    "LLAMA_USE_PREBUILT_UI": "OFF",
}
PIECE = 2**24


@dataclass(frozen=True)
class Speed:
    """One run of llama-bench."""

    tokens_per_second: float
    major_faults: int  # of the whole process: pages that had to come from the disk


@dataclass(frozen=True)
class LlamaCpp:
    """A built llama.cpp."""

    bench: Path  # the program llama-bench

    def decode(
        self,
        path: Path,
        threads: int,
        tokens: int = 64,
        context: int = 128,
        *,
        in_place: bool = False,
    ) -> Speed:
        """Decode ``tokens`` tokens one by one after a context of ``context`` tokens.

        Args:
            path: a GGUF file, best in the page cache (`read_in`).
            threads: of the computation.
            tokens: how many are timed.
            context: tokens in the KV cache (fp16) before the first of them.
            in_place: computes on the mapped file, without llama.cpp's own copy of the weights.

        Raises:
            RuntimeError: llama-bench failed; with the end of what it said.
        """
        return self._run(path, threads, in_place, "-p", "0", "-n", f"{tokens}", "-d", f"{context}")

    def prefill(self, path: Path, threads: int, tokens: int, *, in_place: bool = False) -> Speed:
        """Process a prompt of ``tokens`` tokens; arguments and errors as for `decode`."""
        return self._run(path, threads, in_place, "-p", f"{tokens}", "-n", "0")

    def _run(self, path: Path, threads: int, in_place: bool, *what: str) -> Speed:
        how = ["-o", "json", "-r", "1", "--no-warmup", "-lm", "mmap", "-ngl", "0"]
        how += ["--repack", "0" if in_place else "1", "-t", f"{threads}"]
        command = [f"{self.bench}", "-m", f"{path}", *how, *what]
        before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_majflt
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        after = resource.getrusage(resource.RUSAGE_CHILDREN).ru_majflt
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
        [result] = json.loads(done.stdout)
        return Speed(result["avg_ts"], after - before)


def build(cache: Path) -> LlamaCpp:
    """Build llama-bench for this processor unless ``cache`` has it; minutes, some 300 MB.

    Raises:
        RuntimeError: cmake is missing, or the download, configuring or compiling failed.
    """
    folder = cache / f"llama.cpp-{VERSION}"
    source, output = folder / "source", folder / "build"
    program = output / "bin" / "llama-bench"
    if program.exists():
        return LlamaCpp(program)
    # tools of a virtual environment that is not activated
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    if not shutil.which("cmake", path=path):
        raise RuntimeError("building llama.cpp needs cmake: python -m pip install cmake ninja")
    if not source.exists():
        _fetch_source(source)
    generator = ["-G", "Ninja"] if shutil.which("ninja", path=path) else []
    options = [f"-D{name}={value}" for name, value in CMAKE_OPTIONS.items()]
    _do(["cmake", "-S", f"{source}", "-B", f"{output}", *generator, *options], path)
    jobs = f"{os.cpu_count() or 1}"
    _do(["cmake", "--build", f"{output}", "--target", "llama-bench", "--parallel", jobs], path)
    return LlamaCpp(program)


def _fetch_source(target: Path) -> None:
    """Unpack llama.cpp out of the source package of its Python bindings."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as name:
        place = Path(name)
        pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", PACKAGE]
        _do([*pip, "--dest", name, f"{PACKAGE}=={VERSION}"], os.environ.get("PATH", os.defpath))
        [archive] = place.glob("*.tar.gz")
        with tarfile.open(archive) as tar:
            tar.extractall(place / "all", filter="data")
        [inside] = place.glob("all/*/vendor/llama.cpp")
        inside.rename(target)


def _do(command: list[str], path: str) -> None:
    print(" ".join(command), file=sys.stderr, flush=True)
    environment = os.environ | {"PATH": path}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stdout + done.stderr)[-4000:]
        raise RuntimeError(f"{command[0]} failed with code {done.returncode}:\n{said}")


def read_in(path: Path) -> None:
    """Read a file through, so that it is in the page cache, as far as memory allows."""
    with path.open("rb", buffering=0) as data:
        while data.read(PIECE):
            pass


def drop(path: Path) -> None:
    """Give the memory that holds a file back: what is read in next finds room in large pieces."""
    if hasattr(os, "posix_fadvise"):
        with path.open("rb") as data:
            os.posix_fadvise(data.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def model_path(cache: Path, layers: int) -> Path:
    """Where a model of so many layers is kept."""
    return cache / f"xverse-moe-a4.2b-{layers}-layers-q4_0.gguf"


def default_cache() -> Path:
    """Where builds and models of measurements are kept, if not told otherwise."""
    from platformdirs import user_cache_path

    return user_cache_path("xverse", appauthor=False) / "bench"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.peers.llama_cpp", description=__doc__)
    parser.add_argument("--layers", type=int, nargs="+", default=[28])
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--cache", type=Path, default=None, help="folder of the build and models")
    parser.add_argument("--in-place", action="store_true", help="compute on the mapped file")
    options = parser.parse_args()
    cache = options.cache or default_cache()
    engine = build(cache)
    columns = ["layers", "decode, tokens/s", "prefill 128", "prefill 512", "major faults"]
    print(" | ".join(columns), " | ".join("---" for _ in columns), sep="\n", flush=True)
    for layers in options.layers:
        path = write_model(model_path(cache, layers), layers)
        read_in(path)
        how = {"in_place": options.in_place}
        runs = [engine.decode(path, options.threads, **how)]
        runs += [engine.prefill(path, options.threads, tokens, **how) for tokens in (128, 512)]
        cells = [f"{run.tokens_per_second:.2f}" for run in runs]
        faults = " / ".join(f"{run.major_faults}" for run in runs)
        print(" | ".join([f"{layers}", *cells, faults]), flush=True)


if __name__ == "__main__":
    main()
