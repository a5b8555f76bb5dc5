"""Timing on a CUDA device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median

import torch

REPLAYS = 12


def microseconds(calls: Sequence[Callable[[], object]], replays: int = REPLAYS) -> float:
    """Median time of one call. The calls should take turns over buffers larger than the L2 cache.

    All of them go into one CUDA graph, so that nothing of the host's launching is measured.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for call in calls:
            call()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for call in calls:
            call()
    times = []
    for number in range(replays + 3):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        if number >= 3:
            times.append(begin.elapsed_time(end) * 1000 / len(calls))
    return median(times)


def read_bandwidth() -> float:
    """Bytes per second that the device's memory gives: the best of sums and copies of 4 GB."""
    data = torch.ones(2**30, dtype=torch.int32, device="cuda")
    target = torch.empty_like(data)
    size = data.numel() * 4
    once = [
        size / microseconds([lambda: data.view(2**15, -1).amax(dim=1)], 6),
        2 * size / microseconds([lambda: target.copy_(data)], 6),
    ]
    return max(once) * 1e6


def matmul_rate(size: int = 8192) -> float:
    """FLOP per second of torch's bf16 matrix product on random data."""
    a, b = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    return 2 * size**3 / microseconds([lambda: a @ b] * 5, 6) * 1e6
