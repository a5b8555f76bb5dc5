"""Measures the machine that this runs on: about a second, most of it one pass over some memory."""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import replace
from time import perf_counter

import torch

from xverse_kernels.backend import KernelBackend
from xverse_kernels.cpu.backend import CpuBackend
from xverse_kernels.cpu.extension import native, physical_cores
from xverse_kernels.packing import INT4, ExpertBlocks, ExpertLayout
from xverse_kernels.reference_backend import ReferenceBackend
from xverse_kernels.types import RoutedTokens
from xverse_runtime.host_memory import host_memory
from xverse_runtime.link import pinned_if_possible
from xverse_runtime.offload.machine import Machine
from xverse_runtime.why_no_gpu import on_windows

HOST_BYTES = 2**28
VRAM_BYTES = 2**29
COPY_BYTES = 2**27
HIDDEN, WIDTH = 2560, 1728  # of XVERSE-MoE-A4.2B: the experts that are timed
SMALL = (640, 448)  # a fourteenth of that
PROMPT_TOKENS = 64
MATMUL = 4096
# What the kernels reach of a large bf16 product in a prompt (measured on an H100: 0.28 for int4).
PROMPT_SHARE = 0.28
DISK_BANDWIDTH = 2e9  # not measured: a file that no cache holds would have to be written first
LAUNCH_PER_LAYER = 28e-6  # measured 25 on an H100 by whole tokens; cannot be seen in isolation
LAUNCH_PER_TOKEN = 60e-6
PINNABLE_SHARE = 0.75  # of free memory; Linux sets no limit of its own
PINNABLE_SHARE_WINDOWS = 0.5  # there, and under WSL, drivers are known to refuse more


def measure_machine(device: torch.device) -> Machine:
    """The machine as it is now; without a CUDA device the host alone."""
    machine = _measure_host()
    return machine if device.type == "cpu" else _with_gpu(machine, device)


def _measure_host() -> Machine:
    total, free = host_memory() or (0, 0)
    cores = physical_cores()
    bandwidth = _host_bandwidth(cores)
    experts, flops = _cpu_experts(cores)
    share = PINNABLE_SHARE_WINDOWS if on_windows() else PINNABLE_SHARE
    return Machine(
        name=platform.node() or "this machine",
        host_total=total,
        host_free=free,
        host_bandwidth=max(bandwidth, experts),
        cpu_expert_bandwidth=experts,
        cpu_flops=flops,
        cpu_cores=cores,
        pinnable=int(free * share),
        disk_bandwidth=DISK_BANDWIDTH,
    )


def _host_bandwidth(cores: int) -> float:
    """Plain reads by all cores."""
    words = torch.ones(HOST_BYTES // 8, dtype=torch.int64)
    if native is not None:
        native.set_threads(cores)
        return HOST_BYTES / _best(lambda: native.read(words.data_ptr(), words.nbytes), 3)
    return HOST_BYTES / _best(lambda: words.sum(), 3)


def _cpu_experts(cores: int) -> tuple[float, float]:
    """Bytes per second of int4 experts for one token, FLOP per second in a prompt.

    Without the C extension plain torch computes, which unpacks the weights each time, so slowly
    that small experts have to do.
    """
    hidden, width = (HIDDEN, WIDTH) if native is not None else SMALL
    layout = ExpertLayout(hidden, width, INT4)
    count = 2 if native is None else HOST_BYTES // layout.block_bytes
    blocks = torch.zeros(count, layout.block_bytes, dtype=torch.uint8)
    experts = ExpertBlocks(blocks, layout, torch.float32)
    backend: KernelBackend = ReferenceBackend()
    if native is not None:
        backend = CpuBackend()
        backend.set_threads(cores)

    def run(ids: torch.Tensor) -> Callable[[], object]:
        tokens, slots = ids.shape
        weights = torch.ones(tokens, slots)
        routed = RoutedTokens(torch.ones(tokens, hidden), weights, ids, torch.empty(0))
        residual = torch.zeros(tokens, hidden)
        return lambda: backend.experts(routed, experts, residual)

    # every expert once: far more than any cache, as from one token to the next
    rate = blocks.nbytes / _best(run(torch.arange(count).view(1, -1)), 1 if native is None else 3)
    few = torch.arange(2).repeat(PROMPT_TOKENS, 1)
    operations = 2 * few.numel() * 3 * hidden * width
    return rate, operations / _best(run(few), 1)


def _with_gpu(machine: Machine, device: torch.device) -> Machine:
    """The same host with what its GPU and their link do."""
    free, total = torch.cuda.mem_get_info(device)
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    to_gpu, to_host, latency = _link(device)
    bandwidth = _vram_bandwidth(device, min(VRAM_BYTES, free // 4))
    flops = PROMPT_SHARE * _matmul_flops(device)
    torch.cuda.empty_cache()
    return replace(
        machine,
        gpu=torch.cuda.get_device_name(device),
        vram_total=total,
        vram_free=free + unused,
        vram_bandwidth=bandwidth,
        gpu_flops=flops,
        link_to_gpu=to_gpu,
        link_to_host=to_host,
        copy_latency=latency,
        launch_per_layer=LAUNCH_PER_LAYER,
        launch_per_token=LAUNCH_PER_TOKEN,
    )


def _link(device: torch.device) -> tuple[float, float, float]:
    """Bytes per second to the GPU and back from pinned memory, if the system allows as much of it,
    and seconds of a small copy."""
    there = torch.empty(COPY_BYTES, dtype=torch.uint8, device=device)
    here = pinned_if_possible(torch.zeros(COPY_BYTES, dtype=torch.uint8))
    small, small_there = here[:4096], there[:4096]
    to_gpu = _timed(device, lambda: there.copy_(here, non_blocking=True), 3)
    to_host = _timed(device, lambda: here.copy_(there, non_blocking=True), 3)
    latency = _timed(device, lambda: small.copy_(small_there, non_blocking=True), 20)
    return COPY_BYTES / to_gpu, COPY_BYTES / to_host, latency


def _vram_bandwidth(device: torch.device, size: int) -> float:
    words = torch.ones(size // 8, dtype=torch.int64, device=device)
    return words.nbytes / _timed(device, lambda: words.sum(), 4)


def _matmul_flops(device: torch.device) -> float:
    side = torch.ones(MATMUL, MATMUL, dtype=torch.float16, device=device)
    return 2 * MATMUL**3 / _timed(device, lambda: side @ side, 3)


def _timed(device: torch.device, operation: Callable[[], object], rounds: int) -> float:
    def whole() -> None:
        operation()
        torch.cuda.synchronize(device)

    return _best(whole, rounds)


def _best(operation: Callable[[], object], rounds: int) -> float:
    """Seconds of the fastest of some runs, after one that does not count."""
    operation()
    times = []
    for _ in range(rounds):
        started = perf_counter()
        operation()
        times.append(perf_counter() - started)
    return min(times)
