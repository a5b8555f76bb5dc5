"""How fast a store's weights get from the disk, or from the page cache, to a device (Linux).

    python -m bench.loading STORE [--rounds 5] [--files 6] [--link 20]

No device is needed: the link is a fake one, either without any cost or of a set bandwidth. What the
machine can do is measured in the same rounds, in turns: plain reads of the same files by one, two
and four threads. Pages are dropped from the cache before each cold measurement, as far as the
system follows the advice; a disk of a virtual machine may still have them in a cache outside.
"""

from __future__ import annotations

import argparse
import mmap
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from bench.table import Report
from tests.fake_link import FakeLink
from xverse_runtime.mapped_files import MappedFiles, map_safetensors
from xverse_runtime.upload import PIECE_BYTES, Uploader, reader_threads

NO_COST = float("inf")
OLD_BUFFER_BYTES = 64 * 2**20
Ways = dict[str, Callable[[list[Path]], None]]


@dataclass(frozen=True)
class Options:
    """``link``: GB/s of the fake link, at most."""

    rounds: int
    link: float
    cold: bool


def drop(paths: list[Path]) -> None:
    """Ask the system to forget the pages of files."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def plain_reads(paths: list[Path], threads: int) -> None:
    """Read files piece by piece, each thread into a buffer of its own."""

    def pieces() -> Iterator[tuple[int, int]]:
        for descriptor, path in zip(descriptors, paths, strict=True):
            for offset in range(0, path.stat().st_size, PIECE_BYTES):
                yield descriptor, offset

    def read() -> None:
        buffer = mmap.mmap(-1, PIECE_BYTES)
        while True:
            with lock:
                descriptor, offset = next(work, (None, 0))
            if descriptor is None:
                return
            os.preadv(descriptor, [buffer], offset)

    descriptors = [os.open(path, os.O_RDONLY) for path in paths]
    work, lock = pieces(), threading.Lock()
    readers = [threading.Thread(target=read) for _ in range(threads)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    for descriptor in descriptors:
        os.close(descriptor)


def through_mapping(paths: list[Path]) -> None:
    """As loading was before: torch copies from the mapped file to one of two large buffers."""
    buffers = [torch.zeros(OLD_BUFFER_BYTES, dtype=torch.uint8).fill_(0) for _ in range(2)]
    turn = 0
    for path in paths:
        for tensor in map_safetensors(path, path.name).values():
            for piece in torch.split(tensor.view(-1).view(torch.uint8), OLD_BUFFER_BYTES):
                buffers[turn][: piece.numel()].copy_(piece)
                turn = 1 - turn


def pipeline(paths: list[Path], bandwidth: float) -> None:
    """What loading does now, over a link of this bandwidth."""
    with MappedFiles() as files:
        tensors: list[Tensor] = []
        for path in paths:
            tensors += map_safetensors(path, path.name, files).values()
        with Uploader(FakeLink(bandwidth, "meta"), files) as uploader:
            for tensor in tensors:
                uploader.to_device(tensor)
            uploader.finish()


def measure(report: Report, name: str, portions: list[list[Path]], options: Options) -> None:
    """One table: all ways in turns on every portion. Rates are those of all portions together, and
    of the fastest one: other programs and a disk's moods make others slower, never faster."""
    plain: Ways = {
        f"plain reads, {threads} thread{'s' if threads > 1 else ''}": partial(
            plain_reads, threads=threads
        )
        for threads in (1, 2, 4)
    }
    ways: Ways = {
        **plain,
        "through the mapping, as before": through_mapping,
        "loading, a link without cost": partial(pipeline, bandwidth=NO_COST),
    }
    sizes = [sum(path.stat().st_size for path in paths) for paths in portions] * options.rounds
    times = in_turns(ways, portions, options)
    usual = max(rate(sizes, times[way]) for way in plain)
    best = max(fastest(sizes, times[way]) for way in plain)
    paced = min(options.link * 1e9, usual / 2)
    over_link = f"loading, a link of {paced / 1e9:.2f} GB/s"
    times |= in_turns({over_link: partial(pipeline, bandwidth=paced)}, portions, options)
    report.table(name, ["what", "GB/s", "share", "fastest, GB/s", "share"])
    for way, seconds in times.items():
        mean, top = rate(sizes, seconds), fastest(sizes, seconds)
        of = (paced, paced) if way == over_link else (usual, best)
        report.row(
            way,
            *(f"{mean / 1e9:.2f}", f"{mean / of[0]:.0%}"),
            *(f"{top / 1e9:.2f}", f"{top / of[1]:.0%}"),
        )


def rate(sizes: list[int], seconds: list[float]) -> float:
    """Bytes a second, all together."""
    return sum(sizes) / sum(seconds)


def fastest(sizes: list[int], seconds: list[float]) -> float:
    """Bytes a second of the fastest."""
    return max(size / took for size, took in zip(sizes, seconds, strict=True))


def in_turns(ways: Ways, portions: list[list[Path]], options: Options) -> dict[str, list[float]]:
    """Seconds of every way on every portion, in a new order each time: machines have moods, and no
    way shall always come after the same other one."""
    times: dict[str, list[float]] = {way: [] for way in ways}
    order, rng = list(ways), random.Random(0)
    for paths in portions * options.rounds:
        rng.shuffle(order)
        for way in order:
            if options.cold:
                drop(paths)
            started = time.perf_counter()
            ways[way](paths)
            times[way].append(time.perf_counter() - started)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("store", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--files", type=int, default=6, help="layers to read")
    parser.add_argument("--link", type=float, default=20.0, help="GB/s of the fake link, at most")
    parser.add_argument("--warm-only", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(os.cpu_count() or 1)
    paths = sorted(options.store.glob("layer-*.safetensors"))[: options.files]
    total = sum(path.stat().st_size for path in paths)
    report = Report("loading", Path("bench/results"), [])
    report.say(
        f"`python -m bench.loading`: {total / 1e9:.1f} GB of a store, {os.cpu_count()} cores,"
        f" {reader_threads()} reading threads, buffers of {PIECE_BYTES >> 20} MiB;"
        f" {options.rounds} rounds, in turns. torch {torch.__version__}. Shares are of the best"
        " plain reads, and of the link where it has a bandwidth."
    )
    how = Options(options.rounds, options.link, cold=True)
    if not options.warm_only:
        measure(report, "From the disk", [[path] for path in paths], how)
    plain_reads(paths, 1)
    measure(report, "From the page cache", [paths], replace(how, cold=False))
    print(report.write())


if __name__ == "__main__":
    main()
