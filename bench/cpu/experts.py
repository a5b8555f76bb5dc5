"""The experts of one layer, for one token and for prompts, on every instruction set."""

from __future__ import annotations

from statistics import median
from time import perf_counter, sleep

import torch

from bench.table import Report
from xverse_kernels.cpu.backend import CpuBackend
from xverse_kernels.cpu.extension import instruction_sets, native
from xverse_kernels.packing import FORMATS, ExpertBlocks, ExpertLayout
from xverse_kernels.types import RoutedTokens, SwigluWeights

HIDDEN, WIDTH, ROUTED, SHARED, TOP_K = 2560, 1728, 64, 2, 6
BYTES = 2**30  # of different experts: far more than any cache
CALLS = 24
PROMPTS = (128, 512)
TORCH = "torch's int4 product"  # of its own layout; groups of 32, bf16 scales and zero points


def read_bandwidth(data: torch.Tensor) -> float:
    """Bytes per second of the best of four plain reads, two of the extension and two of torch."""
    words = data.view(torch.int64).flatten()
    best = float("inf")
    for _ in range(2):
        for read in (lambda: words.sum(), lambda: native.read(data.data_ptr(), data.nbytes)):
            started = perf_counter()
            read()
            best = min(best, perf_counter() - started)
    sleep(0.2)  # torch's threads spin for a while before they sleep
    return data.nbytes / best


class TorchInt4:
    """As many matrices as experts have, for torch's own product of a token with int4 weights."""

    def __init__(self, experts: int) -> None:
        pack = torch.ops.aten._convert_weight_to_int4pack_for_cpu
        self._matrices = []
        for rows, columns in ((2 * WIDTH, HIDDEN), (HIDDEN, WIDTH)):
            packed = pack(torch.randint(0, 16, (rows, columns), dtype=torch.int32), 1)
            scales = torch.randn(columns // 32, rows, 2, dtype=torch.bfloat16)
            x = torch.randn(1, columns, dtype=torch.bfloat16)
            copies = [(packed.clone(), scales.clone()) for _ in range(experts)]
            self._matrices.append((x, copies))

    def bytes_per_s(self) -> float:
        """Of the products of one token with every expert, one after the other, without the SiLU."""
        multiply = torch.ops.aten._weight_int4pack_mm_for_cpu
        nbytes, started = 0, perf_counter()
        for x, copies in self._matrices:
            for packed, scales in copies:
                multiply(x, packed, 32, scales)
                nbytes += packed.nbytes + scales.nbytes
        return nbytes / (perf_counter() - started)


def measure_experts(report: Report, threads: int, rounds: int) -> None:
    """Bytes moved over the bandwidth of the same round, and multiplications per second."""
    torch.set_num_threads(threads)
    for form in ("int4", "int8"):
        _measure_form(report, form, threads, max(rounds, 6))


def _measure_form(report: Report, form: str, threads: int, rounds: int) -> None:
    layout = ExpertLayout(HIDDEN, WIDTH, FORMATS[form])
    used = layout.gate_up_bytes + layout.down_bytes
    count = max(ROUTED + SHARED, BYTES // layout.block_bytes)
    random = [torch.randn(WIDTH, HIDDEN) * 0.02 for _ in range(2)]
    block = layout.pack(SwigluWeights(*random, torch.randn(HIDDEN, WIDTH) * 0.02))
    blocks = ExpertBlocks(block.repeat(count, 1), layout, torch.float32)
    report.table(
        f"{form} experts of a layer",
        ["instructions", "1 token: GB/s", "of plain reads, median (worst to best)"]
        + [f"GFLOP/s, {tokens} tokens" for tokens in PROMPTS],
    )
    sets = {name: CpuBackend(name) for name in instruction_sets() if name != "portable"}
    torch_op = TorchInt4(count) if form == "int4" else None
    measured = [*sets, TORCH] if torch_op else [*sets]
    moved: dict[str, list[float]] = {name: [] for name in measured}
    share: dict[str, list[float]] = {name: [] for name in measured}
    for backend in sets.values():
        backend.set_threads(threads)
    for _ in range(rounds):
        before = read_bandwidth(blocks.blocks)
        rates = {name: _decode(name, blocks, count) * used for name in sets}
        if torch_op is not None:
            rates[TORCH] = torch_op.bytes_per_s()
            sleep(0.2)
        best = max(before, read_bandwidth(blocks.blocks))
        for name, rate in rates.items():
            moved[name].append(rate)
            share[name].append(rate / best)
    for name, parts in share.items():
        spread = f"{median(parts):.2f} ({min(parts):.2f} to {max(parts):.2f})"
        prompts = PROMPTS if name in sets else ()
        flops = [f"{_prompt(name, blocks, tokens) / 1e9:.0f}" for tokens in prompts]
        flops += [""] * (len(PROMPTS) - len(flops))
        report.row(name, f"{median(moved[name]) / 1e9:.1f}", spread, *flops)


def _routed(tokens: int, experts: int) -> RoutedTokens:
    slots = TOP_K + SHARED
    ids = torch.stack([torch.randperm(experts)[:slots] for _ in range(tokens)])
    weights = torch.rand(tokens, slots)
    return RoutedTokens(torch.randn(tokens, HIDDEN), weights, ids, torch.empty(0))


def _decode(name: str, blocks: ExpertBlocks, experts: int) -> float:
    """Experts per second, each of other tokens."""
    backend = CpuBackend(name)
    calls = [_routed(1, experts) for _ in range(CALLS)]
    residual = torch.zeros(1, HIDDEN)
    backend.experts(_routed(1, experts), blocks, residual)
    started = perf_counter()
    for routed in calls:
        backend.experts(routed, blocks, residual)
    return CALLS * (TOP_K + SHARED) / (perf_counter() - started)


def _prompt(name: str, blocks: ExpertBlocks, tokens: int) -> float:
    """Floating-point operations per second, two for each weight and token."""
    backend = CpuBackend(name)
    routed, residual = _routed(tokens, ROUTED + SHARED), torch.zeros(tokens, HIDDEN)
    best = float("inf")
    for _ in range(4):
        started = perf_counter()
        backend.experts(routed, blocks, residual)
        best = min(best, perf_counter() - started)
    return tokens * (TOP_K + SHARED) * 3 * 2 * HIDDEN * WIDTH / best
