"""Conversion of a published checkpoint of several GB: rate and memory.

    python -m bench.conversion [--layers 4] [--folder DIR] [--precision int4]

Writes random ``.bin`` shards in the true shape (about 1.8 GB a layer, and 1 GB), converts them, and
prints the rate in bytes of the source beside the rate at which the disk reads it and at which the
quantiser computes alone, measured in the same run, and the peak of anonymous memory.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from xverse_kernels.packing import ExpertLayout
from xverse_kernels.types import SwigluWeights
from xverse_runtime.config import ModelConfig
from xverse_runtime.store.convert import convert_checkpoint
from xverse_runtime.store.precision import PRESETS
from xverse_runtime.store.synthetic import A4_2B
from xverse_runtime.tensors import expected_tensors

PIECE = 2**24


def write_checkpoint(folder: Path, config: dict[str, object]) -> int:
    """Random bf16 weights, one ``.bin`` a layer and one for the rest; returns their bytes."""
    torch.manual_seed(0)
    pool = (torch.randn(2**24) * 0.02).bfloat16()
    shapes = expected_tensors(ModelConfig.from_dict(config))
    shards: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, shape in shapes.items():
        part = name.split(".")[2] if name.startswith("model.layers.") else "rest"
        shards.setdefault(f"pytorch_model-{part}.bin", {})[name] = shape
    for file, wanted in shards.items():
        tensors = {}
        for name, shape in wanted.items():
            count = torch.Size(shape).numel()
            repeated = pool.roll(len(tensors) * 4099).repeat(-(-count // len(pool)))
            tensors[name] = repeated[:count].view(shape).clone()
        torch.save(tensors, folder / file)
    weight_map = {name: file for file, wanted in shards.items() for name in wanted}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (folder / "config.json").write_text(json.dumps(config))
    return sum(file.stat().st_size for file in folder.glob("*.bin"))


def disk_rate(folder: Path) -> float:
    """Bytes per second of reading the shards with an empty cache, where that can be had."""
    read, started = 0, time.perf_counter()
    for file in folder.glob("*.bin"):
        drop_cache(file)
        with file.open("rb", buffering=0) as data:
            while piece := data.read(PIECE):
                read += len(piece)
    return read / (time.perf_counter() - started)


def drop_cache(file: Path) -> None:
    descriptor = os.open(file, os.O_RDONLY)
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


def quantiser_rate(precision: str, threads: int) -> float:
    """Bytes of bf16 source per second that ``threads`` threads pack, with nothing to read."""
    layout = ExpertLayout(2560, 1728, PRESETS[precision].expert_form)
    up, down = torch.randn(1728, 2560).bfloat16(), torch.randn(2560, 1728).bfloat16()
    expert = SwigluWeights(up, up, down)
    size = sum(part.nbytes for part in expert)
    count = 8 * threads
    with ThreadPoolExecutor(threads) as pool:
        started = time.perf_counter()
        list(pool.map(layout.pack, [expert] * count))
    return count * size / (time.perf_counter() - started)


class PeakAnonymousMemory:
    """Samples RssAnon of this process in the background; ``bytes`` is the most seen."""

    def __init__(self) -> None:
        self.bytes = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> PeakAnonymousMemory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.05):
            for line in Path("/proc/self/status").read_text().splitlines():
                if line.startswith("RssAnon:"):
                    self.bytes = max(self.bytes, int(line.split()[1]) * 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument(
        "--folder", type=Path, help="where to write; a temporary directory if absent"
    )
    parser.add_argument("--precision", default="int4", choices=list(PRESETS))
    options = parser.parse_args()
    threads = os.cpu_count() or 1
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=options.folder) as place:
        source, output = Path(place) / "source", Path(place) / "store"
        source.mkdir()
        size = write_checkpoint(source, A4_2B | {"num_hidden_layers": options.layers})
        disk = disk_rate(source)
        quantiser = quantiser_rate(options.precision, threads)
        for file in source.glob("*.bin"):
            drop_cache(file)
        with PeakAnonymousMemory() as peak:
            started = time.perf_counter()
            convert_checkpoint(source, output, PRESETS[options.precision], threads=threads)
            rate = size / (time.perf_counter() - started)
        made = sum(file.stat().st_size for file in output.iterdir())
        shutil.rmtree(output)
    slower = min(disk, quantiser)
    print(f"source {size / 1e9:.2f} GB of .bin, store {made / 1e9:.2f} GB, {threads} threads")
    print(f"disk reads     {disk / 1e6:8.0f} MB/s")
    print(f"quantiser      {quantiser / 1e6:8.0f} MB/s of source")
    print(
        f"conversion     {rate / 1e6:8.0f} MB/s of source = {rate / slower:.2f} of the slower one"
    )
    print(f"peak anonymous {peak.bytes / 1e9:8.2f} GB")


if __name__ == "__main__":
    main()
