"""What the formats of keys and values cost and save: `python -m bench.kv_cache`.

Quality: the demo model on held-out text and on its corpus's answers (as in bench/precision.py), and
the golden checkpoints beside their exact logits; the maths in fp32, so that nothing but the cache
differs. "int8 in groups" rounds as `Int8Rows` does, with a scale for so many columns instead of the
whole head. Speed: attention of the C kernels at the true shape, formats in turns.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import mean, median
from time import perf_counter
from unittest.mock import patch

import torch
from safetensors.torch import load_file
from torch import Tensor

from bench.cpu.__main__ import processor
from bench.precision import Text, losses
from bench.table import Report
from xverse_kernels import reference_backend
from xverse_kernels.cpu.backend import CpuBackend
from xverse_kernels.kv_rows import Rows, empty_rows, read_rows, row_bytes, to_int8, write_rows
from xverse_kernels.types import Rotary
from xverse_runtime.config import EngineConfig
from xverse_runtime.demo import demo_directory
from xverse_runtime.engine import Engine
from xverse_runtime.store.convert import convert_checkpoint
from xverse_runtime.store.precision import PRESETS

GOLDEN = Path(__file__).parents[1] / "tests" / "golden"
HEADS, DIM, LAYERS = 32, 80, 4
PASTS = (128, 1024, 4096)
ROUNDS = 9
Place = tuple[int | slice, ...]


def in_groups(width: int) -> Callable[[Rows, Place, Tensor], None]:
    """Rows of a cache in fp32 that were in int8 with a scale for ``width`` columns."""

    def write(rows: Rows, place: Place, x: Tensor) -> None:
        groups = to_int8(x.unflatten(-1, (-1, width)))
        write_rows(rows, place, read_rows(groups, (slice(None),), torch.float32).flatten(-2))

    return write


# name: (setting, columns of a scale where it is not the whole head)
FORMATS: dict[str, tuple[str, int | None]] = {
    "fp32": ("auto", None),
    "bf16": ("bf16", None),
    "int8": ("int8", None),
    "int8 in groups of 40": ("auto", 40),
    "int8 in groups of 16": ("auto", 16),
}


def bits(setting: str, group: int | None) -> str:
    """What a value takes, scales included."""
    if group is not None:
        return f"{8 * row_bytes(group, torch.int8) / group:.1f}"
    dtypes = {"auto": torch.float32, "bf16": torch.bfloat16, "int8": torch.int8}
    return f"{8 * row_bytes(DIM, dtypes[setting]) / DIM:.1f}"


def golden_error(name: str, setting: str) -> float:
    """Median over tokens of the relative error of the logits."""
    config = EngineConfig(device="cpu", precision="fp32", backend="reference", kv=setting)
    engine = Engine.load(GOLDEN / name, config)
    exact = load_file(GOLDEN / name / "expected.safetensors")
    errors = []
    for number, case in enumerate(json.loads((GOLDEN / name / "expected.json").read_text())[:3]):
        engine._cache.truncate(0)
        ids = case["prompt_token_ids"]
        logits = engine._decoder.forward(ids, engine._cache, logits_for=slice(None))
        expected = exact[f"logits.{number}"]
        errors.append((logits - expected).norm(dim=1) / expected.norm(dim=1))
    return float(torch.cat(errors).median())


def quality(report: Report) -> None:
    """Logits and perplexity with each format."""
    names = ("moe-bin", "moe-gqa", "moe-safetensors")
    report.table(
        "Quality",
        [
            "cache",
            "bits a value",
            "demo: logit error",
            "perplexity, held-out text",
            "perplexity, known answers",
            *(f"{name}: logit error" for name in names),
        ],
    )
    exact: list[Tensor] | None = None
    for title, (setting, group) in FORMATS.items():
        write = write_rows if group is None else in_groups(group)
        with patch.object(reference_backend, "write_rows", write):
            config = EngineConfig(device="cpu", precision="fp32", kv=setting)
            engine = Engine.load(demo_directory(), config)
            text = Text(engine)
            held_out, errors, logits = losses(engine, text.paragraphs, exact)
            answers, _, _ = losses(engine, text.answers, None)
            exact = exact or logits
            error = f"{100 * torch.tensor(errors).median():.2f} %" if errors else "-"
            golden = [f"{100 * golden_error(name, setting):.2f} %" for name in names]
        figures = f"{math.exp(mean(held_out)):.1f}", f"{math.exp(mean(answers)):.5f}"
        report.row(title, bits(setting, group), error, *figures, *golden)


def stores(report: Report) -> None:
    """The same of stores on the C kernels, whose activations are rounded too."""
    columns = ["store", "cache", "perplexity, held-out text", "perplexity, known answers"]
    report.table("Stores of the demo model on the C kernels", columns)
    with tempfile.TemporaryDirectory() as place:
        for preset in ("int8", "int4"):
            path = Path(place) / preset
            convert_checkpoint(demo_directory(), path, PRESETS[preset])
            for setting in ("bf16", "int8"):
                engine = Engine.load(path, EngineConfig(device="cpu", backend="cpu", kv=setting))
                text = Text(engine)
                held_out, _, _ = losses(engine, text.paragraphs, None)
                answers, _, _ = losses(engine, text.answers, None)
                figures = f"{math.exp(mean(held_out)):.1f}", f"{math.exp(mean(answers)):.5f}"
                report.row(preset, setting, *figures)


def speed(report: Report) -> None:
    """Attention of one token, microseconds a layer."""
    kernels = CpuBackend()
    threads = kernels.set_threads(2)
    torch.set_num_threads(1)
    positions = max(PASTS) + 128
    angles = torch.rand(positions, DIM // 2).repeat(1, 2)
    rotary = Rotary(angles.cos(), angles.sin())
    title = f"Attention of one token, {HEADS} heads of {DIM}, {threads} threads, µs a layer"
    report.table(title, ["past", "bf16", "int8", "int8 over bf16, median (least to most)"])
    caches: dict[str, list[tuple[Rows, Rows]]] = {}
    for name, dtype in (("bf16", torch.bfloat16), ("int8", torch.int8)):
        caches[name] = [
            (_filled(positions, dtype), _filled(positions, dtype)) for _ in range(LAYERS)
        ]
    qkv = torch.randn(1, 3 * HEADS * DIM)
    for past in PASTS:
        times: dict[str, list[float]] = {name: [] for name in caches}
        for _ in range(ROUNDS):
            for name, layers in caches.items():
                started = perf_counter()
                for keys, values in layers:
                    kernels.attend_span(qkv, rotary, keys, values, 0, past)
                times[name].append((perf_counter() - started) / LAYERS * 1e6)
        ratios = [one / other for one, other in zip(times["int8"], times["bf16"], strict=True)]
        spread = f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        report.row(str(past), *(f"{median(times[name]):.0f}" for name in caches), spread)


def _filled(positions: int, dtype: torch.dtype) -> Rows:
    rows = empty_rows((1, HEADS, positions, DIM), dtype, torch.device("cpu"))
    write_rows(rows, (slice(None),), torch.randn(1, HEADS, positions, DIM))
    return rows


def main() -> None:
    report = Report(
        "kv-cache", Path("bench/results"), [f"`python -m bench.kv_cache` on: {processor()}."]
    )
    quality(report)
    stores(report)
    speed(report)
    report.write()


if __name__ == "__main__":
    main()
