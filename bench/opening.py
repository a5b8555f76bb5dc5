"""How fast a store opens, and what memory of its own a process needs for it (Linux).

    python -m bench.opening DIR [--processes 2]

Each process opens the store, computes one token up to the end of the first layer, reads every
expert block once, and reports. Shared pages are the page cache's: they are there once, however many
processes look at them.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from pathlib import Path

import torch

from xverse_kernels.packing import ExpertBlocks
from xverse_runtime.config import EngineConfig
from xverse_runtime.engine import Engine
from xverse_runtime.weights import MoeWeights


class _FirstLayerDoneError(Exception):
    pass


def memory() -> dict[str, float]:
    """Private dirty, shared clean and resident megabytes of this process."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]
    sizes = {line.split(":")[0]: int(line.split()[1]) / 1000 for line in lines}
    return {name: sizes[name] for name in ("Rss", "Private_Dirty", "Shared_Clean", "Pss")}


def open_once(path: Path, barrier: object) -> None:
    """Open, compute, touch, report; the barriers keep the processes alive together."""
    before = memory()
    started = time.perf_counter()
    engine = Engine.load(path, EngineConfig(device="cpu"))
    opened = time.perf_counter() - started
    calls = 0

    def after_first_layer() -> None:
        nonlocal calls
        calls += 1
        experts = engine._decoder.config.top_k + engine._decoder.config.num_shared_experts
        if calls == 3 + experts:  # before layer, after attention, each expert, before layer 2
            raise _FirstLayerDoneError

    try:
        engine._decoder.forward([5], engine._cache, between=after_first_layer)
    except _FirstLayerDoneError:
        first_layer = time.perf_counter() - started
    for layer in engine._decoder._weights.layers:
        assert isinstance(layer.mlp, MoeWeights)
        assert isinstance(layer.mlp.experts, ExpertBlocks)
        layer.mlp.experts.blocks[:, ::4096].sum(dtype=torch.int64)
    barrier.wait()  # type: ignore[attr-defined]
    after = memory()
    print(
        f"open {opened:.2f} s, to the end of the first layer {first_layer:.2f} s; "
        f"private dirty {after['Private_Dirty'] - before['Private_Dirty']:.0f} MB more, "
        f"resident {after['Rss']:.0f} MB, of which shared {after['Shared_Clean']:.0f} MB, "
        f"proportional share {after['Pss']:.0f} MB",
        flush=True,
    )
    barrier.wait()  # type: ignore[attr-defined]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("store", type=Path)
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(options.processes)
    processes = [
        context.Process(target=open_once, args=(options.store, barrier))
        for _ in range(options.processes)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()


if __name__ == "__main__":
    main()
