"""`python -m bench.cpu`: see the package."""

from __future__ import annotations

import argparse
import platform
from pathlib import Path

from bench.peers.llama_cpp import default_cache
from bench.table import Report

PARTS = ("experts", "model", "lookup", "memory")


def processor() -> str:
    """What the system calls its processor, and how many cores it has."""
    from xverse_kernels.cpu.extension import instruction_sets, physical_cores

    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines()
        fields = {line.split(":")[0].strip(): line.split(":")[-1].strip() for line in lines if line}
        name = f"{fields['model name']} (family {fields['cpu family']}, model {fields['model']})"
    except (OSError, KeyError):
        pass
    return f"{name}, {physical_cores()} cores, {', '.join(instruction_sets())}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.cpu", description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="by default all")
    parser.add_argument("--layers", type=int, nargs="+", default=[12, 28])
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--cache", type=Path, default=None, help="folder of stores and peers")
    parser.add_argument("--name", default="cpu", help="of the file of results")
    options = parser.parse_args()
    from xverse_kernels.cpu.extension import physical_cores

    cache = options.cache or default_cache()
    threads = options.threads or physical_cores()
    lines = [f"{processor()}; {threads} threads."]
    report = Report(options.name, Path("bench/results"), lines)
    for part in options.parts or PARTS:
        if part == "experts":
            from bench.cpu.experts import measure_experts

            measure_experts(report, threads, options.rounds)
        elif part == "model":
            from bench.cpu.model import measure_model

            for layers in options.layers:
                measure_model(report, cache, layers, threads, options.rounds)
        elif part == "lookup":
            from bench.cpu.lookup import measure_lookup

            measure_lookup(report, cache, options.layers[-1], threads, options.rounds)
        else:
            from bench.cpu.model import measure_memory

            measure_memory(report, cache, options.layers[-1], threads, options.rounds)
        report.write()


if __name__ == "__main__":
    main()
