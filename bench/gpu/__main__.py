"""The command line: see the package."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from bench.gpu import ROOT
from bench.gpu.kernels import measure_kernels
from bench.gpu.offload import MINUTES, PARTS, measure_offload
from bench.gpu.peer import measure_peer
from bench.gpu.runtime import measure_runtime
from bench.table import Report
from xverse_runtime.kv_cache import FORMATS

RESULTS = ROOT / "bench" / "results"


def main() -> None:
    parser = arguments_parser()
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        parser.exit(1, "no CUDA or ROCm device here: torch.cuda.is_available() is false\n")
    for what in arguments.what:
        name = report_name(what, device_slug(), arguments.kv)
        lines = heading(what, arguments.kv)
        report = Report(name, arguments.output, lines, keeps_parts=True)
        if what == "kernels":
            measure_kernels(report, arguments.precision)
        elif what == "runtime":
            measure_runtime(report, arguments.precision, arguments.layers, arguments.kv)
        elif what == "offload":
            points = arguments.output / f"offload-{device_slug()}.json"
            measure_offload(report, arguments.part, arguments.layers, points, arguments.minutes)
        else:
            measure_peer(report, arguments.layers)
        print(report.write())


def arguments_parser() -> argparse.ArgumentParser:
    """What can be asked for."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__)
    parser.add_argument("what", choices=("kernels", "runtime", "peer", "offload"), nargs="+")
    parser.add_argument("--precision", nargs="*", default=["bf16", "int8", "int4"])
    parser.add_argument("--part", nargs="*", choices=PARTS, default=[*PARTS], help="of offload")
    parser.add_argument(
        "--minutes", type=float, default=MINUTES, help="of offload, after which no point is begun"
    )
    parser.add_argument("--layers", type=int, default=28, help="fewer for smaller GPUs")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the tables")
    kv = ("auto", *FORMATS)
    parser.add_argument("--kv", choices=kv, default="auto", help="cache of runtime; named apart")
    return parser


def report_name(what: str, device: str, kv: str = "auto") -> str:
    """Of a table, so that figures for a chosen format of the cache lie beside the usual ones."""
    apart = f"-kv-{kv}" if what == "runtime" and kv != "auto" else ""
    return f"{what}-{device}{apart}"


def device_slug() -> str:
    """The device's name for a file."""
    words = torch.cuda.get_device_name().lower().replace("nvidia", "").split()
    return "-".join(words)


def heading(what: str, kv: str = "auto") -> list[str]:
    """What the figures were measured with."""
    import triton

    option = f" --kv {kv}" if what == "runtime" and kv != "auto" else ""
    return [
        f"`python -m bench.gpu {what}{option}` on {torch.cuda.get_device_name()},"
        f" torch {torch.__version__}, triton {triton.__version__}"
    ]


if __name__ == "__main__":
    main()
