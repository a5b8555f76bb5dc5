"""The command line: see the package."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from bench.gpu import ROOT
from bench.gpu.kernels import measure_kernels
from bench.gpu.offload import PARTS, measure_offload
from bench.gpu.peer import measure_peer
from bench.gpu.runtime import measure_runtime
from bench.table import Report

RESULTS = ROOT / "bench" / "results"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__)
    parser.add_argument("what", choices=("kernels", "runtime", "peer", "offload"), nargs="+")
    parser.add_argument("--precision", nargs="*", default=["bf16", "int8", "int4"])
    parser.add_argument("--part", nargs="*", choices=PARTS, default=[*PARTS], help="of offload")
    parser.add_argument("--layers", type=int, default=28, help="fewer for smaller GPUs")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the tables")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        parser.exit(1, "no CUDA or ROCm device here: torch.cuda.is_available() is false\n")
    for what in arguments.what:
        report = Report(f"{what}-{device_slug()}", arguments.output, heading(what))
        if what == "kernels":
            measure_kernels(report, arguments.precision)
        elif what == "runtime":
            measure_runtime(report, arguments.precision, arguments.layers)
        elif what == "offload":
            points = arguments.output / f"offload-{device_slug()}.json"
            measure_offload(report, arguments.part, arguments.layers, points)
        else:
            measure_peer(report, arguments.layers)
        print(report.write())


def device_slug() -> str:
    """The device's name for a file."""
    words = torch.cuda.get_device_name().lower().replace("nvidia", "").split()
    return "-".join(words)


def heading(what: str) -> list[str]:
    """What the figures were measured with."""
    import triton

    return [
        f"`python -m bench.gpu {what}` on {torch.cuda.get_device_name()},"
        f" torch {torch.__version__}, triton {triton.__version__}"
    ]


if __name__ == "__main__":
    main()
