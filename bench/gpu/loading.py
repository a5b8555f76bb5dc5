"""Loading beside the two things that bound it, in the same run: the link, and reading files."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from statistics import median

import torch

from bench.loading import drop, plain_reads
from bench.table import Report
from xverse_runtime.config import EngineConfig
from xverse_runtime.demo import demo_directory
from xverse_runtime.engine import Engine
from xverse_runtime.link import CudaLink
from xverse_runtime.mapped_files import MappedFiles, map_safetensors
from xverse_runtime.store.precision import PRESETS
from xverse_runtime.store.synthetic import A4_2B, write_synthetic_store
from xverse_runtime.upload import PIECE_BYTES, Uploader, reader_threads

LINK_BYTES = 2**28
LOADED_LAYERS = 8
MIB = 2**20
# (readers, bytes of a buffer): what the defaults are chosen from
SWEEP = [(readers, size * MIB) for readers in (2, 4, 8, 12) for size in (4, 8, 16)]


@dataclass(frozen=True)
class Rates:
    """Bytes a second of each round."""

    reading: list[float]
    loading: list[float]


def link_bandwidth(device: torch.device) -> float:
    """Bytes a second from pinned memory to the device."""
    pinned = torch.empty(LINK_BYTES, dtype=torch.uint8, pin_memory=True)
    target = torch.empty(LINK_BYTES, dtype=torch.uint8, device=device)
    best = 0.0
    for _ in range(5):
        torch.cuda.synchronize()
        started = time.perf_counter()
        target.copy_(pinned, non_blocking=True)
        torch.cuda.synchronize()
        best = max(best, LINK_BYTES / (time.perf_counter() - started))
    return best


def loading_bandwidth(
    paths: Sequence[Path],
    *,
    rounds: int,
    cold: bool = False,
    readers: int | None = None,
    piece_bytes: int = PIECE_BYTES,
) -> Rates:
    """Plain reads of safetensors files and loading them to the device, in turns."""
    rates = Rates([], [])
    threads = readers or reader_threads()
    for _ in range(rounds):
        reading = _timed(paths, cold, lambda: plain_reads(list(paths), threads))
        rates.reading.append(reading)
        rates.loading.append(_timed(paths, cold, lambda: _load(paths, readers, piece_bytes)))
    return rates


def measure_loading(report: Report) -> None:
    """A store of a few layers: from the disk and from the page cache, then the whole engine."""
    device = torch.device("cuda", torch.cuda.current_device())
    link = link_bandwidth(device)
    columns = ["what", "GB/s", "plain reads, GB/s", "of the slower of link and reads"]
    report.table("Loading", columns)
    report.row("pinned memory to the device", f"{link / 1e9:.1f}", "", "")

    def row(what: str, rates: Rates) -> None:
        reading, loading = median(rates.reading), median(rates.loading)
        share = f"{loading / min(link, reading):.0%}"
        report.row(what, f"{loading / 1e9:.1f}", f"{reading / 1e9:.1f}", share)

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "store"
        shape = {**A4_2B, "num_hidden_layers": LOADED_LAYERS}
        write_synthetic_store(shape, path, PRESETS["int4"], demo_directory())
        paths = sorted(path.glob("layer-*.safetensors"))
        row("its layers, from the disk", loading_bandwidth(paths, rounds=3, cold=True))
        row("from the page cache", loading_bandwidth(paths, rounds=5))
        total = sum(file.stat().st_size for file in path.iterdir())
        engines = 3 if find_spec("sentencepiece") else 0  # reads the demo's tokenizer
        if not engines:
            report.row("an engine: not measured without sentencepiece", "", "", "")
        for number in range(engines):
            started = time.perf_counter()
            engine = Engine.load(path, EngineConfig(device="cuda", context_length=256))
            torch.cuda.synchronize()
            rate = total / (time.perf_counter() - started)
            what = f"an engine on {total / 1e9:.1f} GB, opening {number + 1}"
            report.row(what, f"{rate / 1e9:.1f}", "", f"{rate / link:.0%} of the link")
            del engine
        report.table("Loading from the page cache: threads and buffers", columns)
        for readers, size in SWEEP:
            rates = loading_bandwidth(paths, rounds=3, readers=readers, piece_bytes=size)
            row(f"{readers} threads, {size // MIB} MiB", rates)


def _load(paths: Sequence[Path], readers: int | None, piece_bytes: int) -> None:
    device = torch.device("cuda", torch.cuda.current_device())
    with MappedFiles() as files:
        mapped = [
            tensor for path in paths for tensor in map_safetensors(path, path.name, files).values()
        ]
        link = CudaLink(device)
        with Uploader(link, files, readers=readers, piece_bytes=piece_bytes) as uploader:
            placed = [uploader.to_device(tensor) for tensor in mapped]
            uploader.finish()
    torch.cuda.synchronize()
    del placed


def _timed(paths: Sequence[Path], cold: bool, work: Callable[[], None]) -> float:
    if cold:
        drop(list(paths))
    started = time.perf_counter()
    work()
    return sum(path.stat().st_size for path in paths) / (time.perf_counter() - started)
