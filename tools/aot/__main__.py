"""`python -m tools.aot --help`."""

from __future__ import annotations

import argparse
import os
import pickle
import sys
import time
from pathlib import Path


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.aot", description=__doc__)
    parser.add_argument("--targets", help="separated by commas; all without it")
    parser.add_argument("--quick", action="store_true", help="one tile of each kernel")
    parser.add_argument("--jobs", type=int, default=2, help="processes (default: %(default)s)")
    parser.add_argument("--save", type=Path, metavar="FILE", help="pickle the builds")
    parser.add_argument("--table", type=Path, metavar="FILE", help="renew the table in a document")
    options = parser.parse_args()
    if os.environ.get("TRITON_INTERPRET", "0") != "0":
        parser.error("kernels cannot be compiled with TRITON_INTERPRET set")
    if options.table and (options.targets or options.quick):
        parser.error("--table needs all targets and tiles")

    from tools.aot.budgets import violations
    from tools.aot.matrix import build_all
    from tools.aot.table import describe, renew
    from tools.aot.targets import TARGETS

    begun = time.perf_counter()
    names = options.targets.split(",") if options.targets else list(TARGETS)
    builds = build_all(names, quick=options.quick, jobs=options.jobs)
    if options.save:
        options.save.write_bytes(pickle.dumps(builds))
    if options.table:
        renew(options.table, builds)
    broken = [
        f"{one.target} {describe(one.launch)}: {text}" for one in builds for text in violations(one)
    ]
    print(*broken, sep="\n", end="\n" if broken else "")
    seconds = time.perf_counter() - begun
    print(f"{len(builds)} builds in {seconds:.0f} s, {len(broken)} over budget", file=sys.stderr)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
