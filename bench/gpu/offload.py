"""Experts behind a small part of a GPU's memory: tokens per second beside what was predicted,
beside Accelerate's offload of the same tensors, and beside the CPU alone.

A point takes a minute or two. Each is written to a JSON file as soon as it is measured, and is not
measured again unless it failed: a run that was cut off, or has come to the end of its minutes, goes
on where it was. Weights are random and made in host memory, never on the disk; routing is the
calibrated generator's.
"""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import torch

from bench.gpu.accelerate_offload import accelerate_tokens_per_s
from bench.gpu.random_weights import random_experts, random_packed
from bench.gpu.traced import TracedKernels, synthetic_tokens
from bench.table import Report
from xverse_kernels.backend import KernelBackend, select_backend
from xverse_kernels.packing import BF16, FORMATS, ExpertBlocks, ExpertLayout
from xverse_kernels.types import Projection, TokenChoice
from xverse_runtime.config import ModelConfig
from xverse_runtime.decode_loop import DecodeLoop
from xverse_runtime.decoding import decode_loop
from xverse_runtime.kv_cache import KVCache, KVPool, cache_dtype
from xverse_runtime.memory_plan import Wishes, plan_memory
from xverse_runtime.model import Decoder
from xverse_runtime.offload.machine import Machine
from xverse_runtime.offload.measure import measure_machine
from xverse_runtime.offload.offloaded_experts import ExpertOffload
from xverse_runtime.offload.pieces import GraphRecorder
from xverse_runtime.offload.piecewise_step import PiecewiseStep
from xverse_runtime.offload.setup import ModelPlan, build_offload, host_kernels
from xverse_runtime.offload.synthetic_guesses import CAREFUL
from xverse_runtime.offload.transfer import CudaQueues, OffloadDevice
from xverse_runtime.rope import RotaryTable
from xverse_runtime.store.precision import PRESETS
from xverse_runtime.store.synthetic import A4_2B
from xverse_runtime.weights import AttentionWeights, LayerWeights, ModelWeights, MoeWeights

GIB = 2**30
CAPS = (8, 12, 6, 16, 24)  # GiB of the GPU, the most important first
CONTEXTS = (4096, 512)
WARM, STEPS = 192, 96  # tokens until the cache is what it is going to be, and measured ones
PROMPT = 512
DTYPE = torch.bfloat16
GREEDY = TokenChoice(0.0, 0, 1.0, 0.0, 1.0, 0)
PARTS = ("int4", "bf16", "accelerate", "int8", "cpu")  # Accelerate has the tensors of bf16
MINUTES = 6.0  # no point is begun later, so that a run ends within eight

Point = dict[str, Any]


def measure_offload(
    report: Report,
    parts: list[str],
    layers: int,
    points_file: Path,
    minutes: float = MINUTES,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Measure what is not in the file yet, and make the tables of all that is.

    Args:
        report: gets the tables.
        parts: of PARTS, in the order of their names there.
        layers: of the model.
        points_file: JSON, written after every point.
        minutes: after which no more points are begun.
        clock: in seconds.
    """
    points: list[Point] = []
    if points_file.exists():
        points = json.loads(points_file.read_text(encoding="utf-8"))
    points = [one for one in points if "failed" not in one]
    known = {(one["what"], one["cap"], one["context"], one["layers"]) for one in points}
    config = ModelConfig.from_dict({**A4_2B, "num_hidden_layers": layers})
    machine: Machine | None = None
    began, made_as, blocks = clock(), "", []
    for what in sorted(parts, key=PARTS.index):
        for cap, context in _points_of(what):
            if (what, cap, context, layers) in known:
                continue
            if clock() - began > 60 * minutes:
                print(f"{minutes:g} minutes are over: the same command goes on", flush=True)
                tables(report, points)
                return
            machine = machine or measure_machine(torch.device("cuda"))
            precision = {"accelerate": "bf16", "cpu": "int4"}.get(what, what)
            if precision != made_as:
                blocks = []  # before the next ones take their memory
                made_as, blocks = precision, host_blocks(config, precision)
            try:
                point = _measure(what, cap, context, config, machine, blocks)
            except Exception as error:  # the other points are worth having
                point = {"failed": f"{type(error).__name__}: {str(error)[:200]}"}
            point |= {"what": what, "cap": cap, "context": context, "layers": layers}
            points.append(point)
            print(json.dumps(point), flush=True)
            points_file.parent.mkdir(parents=True, exist_ok=True)
            points_file.write_text(json.dumps(points, indent=1) + "\n", encoding="utf-8")
            gc.collect()
            torch.cuda.empty_cache()
    tables(report, points)


def _points_of(what: str) -> list[tuple[int, int]]:
    """(GiB of the GPU, context)."""
    if what in ("cpu", "accelerate"):
        return [(0 if what == "cpu" else 8, CONTEXTS[0])]
    return [(cap, context) for cap in CAPS for context in CONTEXTS]


def host_blocks(config: ModelConfig, precision: str) -> list[ExpertBlocks]:
    """Random experts of every layer in host memory."""
    layout = ExpertLayout(config.hidden_size, config.intermediate_size, FORMATS[precision])
    count = config.num_experts + config.num_shared_experts
    made_on = "cuda" if torch.cuda.is_available() else "cpu"
    return [
        ExpertBlocks(random_experts(count, layout, DTYPE, made_on).blocks.cpu(), layout, DTYPE)
        for _ in range(config.num_layers)
    ]


def weights_around(
    config: ModelConfig, precision: str, blocks: list[ExpertBlocks], device: str, dtype: torch.dtype
) -> ModelWeights:
    """Everything but the experts, random on the device; the embedding stays on the host."""
    parts, hidden = PRESETS[precision], config.hidden_size
    attention, head = FORMATS[parts.attention], FORMATS[parts.head]

    def layer(experts: ExpertBlocks) -> LayerWeights:
        qkv = random_packed(3 * hidden, hidden, attention, device)
        out = random_packed(hidden, hidden, attention, device)
        return LayerWeights(
            input_norm=torch.ones(hidden, device=device, dtype=dtype),
            attention=AttentionWeights((Projection(qkv),), Projection(out)),
            post_attention_norm=torch.ones(hidden, device=device, dtype=dtype),
            mlp=MoeWeights(
                torch.randn(config.num_experts, hidden, device=device) * hidden**-0.5, experts
            ),
        )

    embedding = random_packed(config.vocab_size, hidden, BF16, device)
    assert isinstance(embedding, torch.Tensor)
    return ModelWeights(
        embedding=(embedding * hidden**0.5).cpu(),
        layers=tuple(layer(one) for one in blocks),
        norm=torch.ones(hidden, device=device, dtype=dtype),
        head=random_packed(config.vocab_size, hidden, head, device),
    )


def _measure(
    what: str,
    cap: int,
    context: int,
    config: ModelConfig,
    machine: Machine,
    blocks: list[ExpertBlocks],
) -> Point:
    if what == "cpu":
        return {"tokens_per_s": cpu_tokens_per_s(config, blocks, context)}
    if what == "accelerate":
        return {"tokens_per_s": accelerate_tokens_per_s(config, blocks, cap * GIB)}
    wishes = Wishes(device="cuda", precision=what, context=context, gpu_memory=cap * GIB)
    plan = ModelPlan(plan_memory(config, machine, wishes).placement, machine)
    device = torch.device("cuda", torch.cuda.current_device())
    kernels = TracedKernels(select_backend("triton", device), config, device)
    queues = CudaQueues(device, kernels)
    try:
        return measure_point(config, plan, blocks, queues, kernels, GraphRecorder(device))
    finally:
        queues.close()


def measure_point(
    config: ModelConfig,
    plan: ModelPlan,
    blocks: list[ExpertBlocks],
    queues: OffloadDevice,
    kernels: TracedKernels,
    recorder: GraphRecorder | None,
    *,
    dtype: torch.dtype = DTYPE,
    warm: int = WARM,
    steps: int = STEPS,
    prompt: int = PROMPT,
) -> Point:
    """Decoding up to a full context, then a prompt; what was predicted beside it."""
    placement, device = plan.placement, queues.device
    context = placement.context
    torch.cuda.reset_peak_memory_stats() if device.type == "cuda" else None
    weights = weights_around(config, placement.precision, blocks, device.type, dtype)
    pool = KVPool(config, context, cache_dtype(placement.kv, dtype), device)
    for part in (*pool.keys, *pool.values):
        part.zero_()
    adjusted: list[str] = []
    offload = build_offload(
        weights,
        config,
        plan,
        queues,
        as_backend(kernels),
        in_place=True,
        on_adjustment=lambda code, facts: adjusted.append(f"{code} {dict(facts)}"),
    )
    if offload.wants_guesses:
        kernels.guess(CAREFUL)
    rotary = RotaryTable(config, context, device)
    decoder = Decoder(config, weights, as_backend(kernels), rotary, offload.runners)
    step = PiecewiseStep(decoder, offload, recorder)
    loop = decode_loop(decoder, pool, use_graphs=False, offloaded=step)
    loop.sampler.begin(0, [1], GREEDY)
    before = max(1, context - warm - steps - 1)
    loop.start(0, before)
    tokens = list(synthetic_tokens(config, warm + steps))
    run_tokens(loop, kernels, tokens[:warm], before)
    warm_statistics = _copy(offload)
    times = run_tokens(loop, kernels, tokens[warm:], before + warm)
    statistics = offload.statistics.since(warm_statistics)
    seconds = sum(times)
    expected = plan.forecast(context)
    first = first_token_seconds(decoder, pool, config, min(prompt, context - 1))
    return {
        "tokens_per_s": len(times) / seconds,
        "median_ms": median(times) * 1e3,
        "hit_rate": statistics.hit_rate,
        "first_token_s": first,
        "predicted_tokens_per_s": expected.tokens_per_s,
        "predicted_hit_rate": expected.hit_rate,
        "predicted_first_token_s": expected.first_token_s,
        "slots_per_layer": placement.slots_per_layer,
        "link_gb_per_s": (statistics.background_bytes + statistics.critical_bytes) / seconds / 1e9,
        "cpu_share": statistics.cpu_s / seconds,
        "choice_share": statistics.choice_s / seconds,
        "coordination_us": statistics.coordination_s / max(1, statistics.layers) * 1e6,
        "mode": offload.modes.best,
        "statistics": asdict(statistics),
        "peak_gpu_gib": torch.cuda.max_memory_allocated() / GIB if device.type == "cuda" else 0.0,
        "adjusted": adjusted,
    }


def as_backend(kernels: TracedKernels) -> KernelBackend:
    """It is one, by delegation."""
    made: Any = kernels
    backend: KernelBackend = made
    return backend


def run_tokens(
    loop: DecodeLoop, kernels: TracedKernels, tokens: list[Any], position: int
) -> list[float]:
    """Seconds of each step."""
    times = []
    for number, token in enumerate(tokens):
        kernels.follow(token)
        _synchronize(loop.positions.device)
        started = time.perf_counter()
        loop.step(position + number)
        _synchronize(loop.positions.device)
        times.append(time.perf_counter() - started)
    return times


def first_token_seconds(decoder: Decoder, pool: KVPool, config: ModelConfig, count: int) -> float:
    """Of the second of two prompts: the first one compiles kernels."""
    ids = [(place * 7919) % (config.vocab_size - 10) + 4 for place in range(count)]
    seconds = 0.0
    for _ in range(2):
        started = time.perf_counter()
        int(decoder.forward(ids, KVCache(pool)).argmax())
        seconds = time.perf_counter() - started
    return seconds


def cpu_tokens_per_s(config: ModelConfig, blocks: list[ExpertBlocks], context: int) -> float:
    """The same int4 experts, everything on the CPU."""
    kernels = host_kernels(None)
    blocks = [ExpertBlocks(one.blocks, one.layout, torch.float32) for one in blocks]
    weights = weights_around(config, "int4", blocks, "cpu", torch.float32)
    cpu = torch.device("cpu")
    decoder = Decoder(config, weights, kernels, RotaryTable(config, context, cpu))
    pool = KVPool(config, context, torch.bfloat16, cpu)
    cache = KVCache(pool)
    cache.commit([5] * (context - 40))
    times = []
    for number in range(32):
        started = time.perf_counter()
        int(decoder.forward([number + 7], cache).argmax())
        times.append(time.perf_counter() - started)
    return 1 / median(times[8:])


def tables(report: Report, points: list[Point]) -> None:
    """What was measured beside what was predicted, and the ratios that matter."""
    columns = ["experts", "GPU memory", "context", "slots a layer", "tokens/s", "predicted"]
    columns += ["hit rate", "predicted", "first token", "predicted", "link", "CPU", "mode"]
    report.table("Offload", columns)
    for one in points:
        if "slots_per_layer" not in one:
            continue
        report.row(
            one["what"],
            f"{one['cap']} GiB",
            f"{one['context']}",
            f"{one['slots_per_layer']:.1f}",
            f"{one['tokens_per_s']:.1f}",
            f"{one['predicted_tokens_per_s']:.1f}",
            f"{one['hit_rate']:.2f}",
            f"{one['predicted_hit_rate']:.2f}",
            f"{one['first_token_s']:.2f} s",
            f"{one['predicted_first_token_s']:.2f} s",
            f"{one['link_gb_per_s']:.1f} GB/s",
            f"{one['cpu_share']:.0%}",
            one["mode"],
        )
    report.table("Beside the alternatives, 8 GiB, context 4096", ["what", "tokens/s", "ours"])
    rates = {
        (one["what"], one["cap"]): one["tokens_per_s"]
        for one in points
        if one["context"] == CONTEXTS[0] and "tokens_per_s" in one
    }
    for alternative, ours in ((("accelerate", 8), ("bf16", 8)), (("cpu", 0), ("int4", 8))):
        if alternative in rates and ours in rates:
            report.row(
                alternative[0],
                f"{rates[alternative]:.2f}",
                f"{ours[0]}: {rates[ours] / rates[alternative]:.1f} x",
            )
    for one in points:
        if "failed" in one:
            report.say(f"{one['what']} at {one['cap']} GiB, {one['context']}: {one['failed']}")


def _copy(offload: ExpertOffload) -> Any:
    from dataclasses import replace

    return replace(offload.statistics)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
