"""The whole model with random weights of the true shape: tokens per second, and where time goes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from statistics import median

import torch

from bench.gpu.loading import measure_loading
from bench.gpu.random_model import random_decoder
from bench.gpu.spans import Span, by_kernel
from bench.gpu.timing import read_bandwidth
from bench.table import Report
from xverse_kernels.types import TokenChoice
from xverse_runtime.config import ModelConfig
from xverse_runtime.decode_loop import DecodeLoop
from xverse_runtime.engine_parts import GPU_PREFILL_CHUNK
from xverse_runtime.kv_cache import KVCache, KVPool
from xverse_runtime.model import Decoder
from xverse_runtime.store.manifest import StorePrecision
from xverse_runtime.store.precision import PRESETS, bytes_per_token

CONTEXTS = (0, 1000, 4000, 8100)
PROMPTS = (128, 512, 2048, 8000)
CAPACITY = 8192
CHUNK = GPU_PREFILL_CHUNK
BATCH = 8
LISTED_KERNELS = 10
GREEDY = TokenChoice(0.0, 0, 1.0, 0.0, 1.0, 0)
SAMPLED = TokenChoice(0.5, 30, 0.85, 0.0, 1.1, 0)


def measure_runtime(
    report: Report, precisions: Sequence[str], layers: int, kv: str = "auto"
) -> None:
    """Decode, prefill, batches and a profile at each precision, with keys and values in ``kv``."""
    torch.manual_seed(0)
    bandwidth = read_bandwidth()
    report.say(f"Measured: {bandwidth / 1e9:.0f} GB/s read. {layers} layers of XVERSE-MoE-A4.2B.")
    for precision in precisions:
        parts = PRESETS[precision]
        _measure(report, precision, parts, layers, bandwidth, kv)
        if precision == "int8":
            throughout = StorePrecision(experts="int8", attention="int8", head="int8")
            _measure(report, "int8 throughout", throughout, layers, bandwidth, kv, brief=True)
    if kv == "auto":  # what a cache is kept in does not matter to loading
        measure_loading(report)


def _measure(
    report: Report,
    name: str,
    parts: StorePrecision,
    layers: int,
    bandwidth: float,
    kv: str,
    brief: bool = False,
) -> None:
    decoder, pool, config = random_decoder(parts, layers, CAPACITY, kv)
    dtype = pool.dtype
    report.say(f"{name}: keys and values in {str(dtype).removeprefix('torch.')}.")
    weights = bytes_per_token(config, parts)
    report.table(f"{name}: decoding, one sequence", ["context", "tokens/s", "ms", "of bandwidth"])
    loop = _loop(decoder, pool, config, GREEDY)
    for context in CONTEXTS:
        seconds = decode_seconds(loop, context)
        moved = weights + KVPool.bytes_needed(config, context, dtype)
        report.row(
            f"{context}",
            f"{1 / seconds:.1f}",
            f"{seconds * 1e3:.3f}",
            f"{moved / seconds / bandwidth:.1%}",
        )
    loop.sampler.begin(0, [1, 2, 3], SAMPLED)
    seconds = decode_seconds(loop, 0)
    report.row("0, top-k 30", f"{1 / seconds:.1f}", f"{seconds * 1e3:.3f}", "")
    _profile(report, loop)
    if not brief:
        _prefill(report, name, decoder, pool)
        del loop, pool
        _batch(report, name, decoder, config, dtype)
    del decoder
    torch.cuda.empty_cache()


def _loop(decoder: Decoder, pool: KVPool, config: ModelConfig, choice: TokenChoice) -> DecodeLoop:
    sampler = decoder.kernels.sampler(pool.sequences, config.vocab_size)
    assert sampler is not None
    loop = DecodeLoop(decoder, pool, sampler)
    for row in range(pool.sequences):
        loop.sampler.begin(row, [row], choice)
    loop.sampler.tokens.copy_(torch.arange(pool.sequences) * 1000 + 7)
    return loop


def decode_seconds(loop: DecodeLoop, context: int, steps: int = 32, rounds: int = 5) -> float:
    """Median time of a step, host and device together, beginning after ``context`` tokens."""
    loop.positions.fill_(context)
    for _ in range(3):
        loop.step(context)
    torch.cuda.synchronize()
    times = []
    for _ in range(rounds):
        loop.positions.fill_(context)
        torch.cuda.synchronize()
        started = time.perf_counter()
        for _ in range(steps):
            loop.step(context)
        torch.cuda.synchronize()
        times.append((time.perf_counter() - started) / steps)
    return median(times)


def _prefill(report: Report, name: str, decoder: Decoder, pool: KVPool) -> None:
    report.table(f"{name}: prompt", ["tokens", "ms to the first token", "tokens/s"])
    for count in PROMPTS:
        ids = [(place * 7919) % 100000 + 4 for place in range(count)]
        times = []
        for _ in range(4):
            cache = KVCache(pool)
            torch.cuda.synchronize()
            started = time.perf_counter()
            for start in range(0, count, CHUNK):
                logits = decoder.forward(ids[start : start + CHUNK], cache)
            int(logits.argmax())
            times.append(time.perf_counter() - started)
        seconds = median(times[1:])
        report.row(f"{count}", f"{seconds * 1e3:.1f}", f"{count / seconds:.0f}")


def _batch(
    report: Report, name: str, decoder: Decoder, config: ModelConfig, dtype: torch.dtype
) -> None:
    report.table(f"{name}: decoding, several sequences", ["sequences", "tokens/s", "ms"])
    for sequences in (1, BATCH):
        pool = KVPool(config, 512, dtype, decoder.device, sequences)
        loop = _loop(decoder, pool, config, GREEDY)
        seconds = decode_seconds(loop, 100)
        report.row(f"{sequences}", f"{sequences / seconds:.1f}", f"{seconds * 1e3:.3f}")


def _profile(report: Report, loop: DecodeLoop) -> None:
    """Where one token's time goes, by kernel."""
    from torch.profiler import ProfilerActivity, profile

    loop.positions.fill_(0)
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        loop.step(0)
        torch.cuda.synchronize()
    spans = [
        Span(event.time_range.start, event.time_range.end, event.name)
        for event in profiler.events()
        if event.device_time > 0
    ]
    if spans:
        _say_profile(report, spans)


def _say_profile(report: Report, spans: Sequence[Span]) -> None:
    kernels = by_kernel(spans)
    columns = ["kernel", "launches", "µs each", "µs in all", "µs of gaps before it"]
    report.table("one token, by kernel (profiled)", columns)
    for kernel, launches, busy, gap in kernels[:LISTED_KERNELS]:
        report.row(kernel, f"{launches}", f"{busy / launches:.2f}", f"{busy:.1f}", f"{gap:.1f}")
    whole = max(span.end for span in spans) - min(span.start for span in spans)
    gaps = sum(kernel.gap for kernel in kernels)
    report.row("first to last", f"{len(spans)}", "", f"{whole:.1f}", f"{gaps:.1f}")
    busy = sum(kernel.busy for kernel in kernels)
    report.row("sum (kernels overlap)", "", "", f"{busy:.1f}", "")
