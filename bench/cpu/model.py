"""The whole decoder at the true shape, beside llama.cpp on the same shape in Q4_0."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

from bench.cpu.stores import int4_store
from bench.peers.llama_cpp import LlamaCpp, build, drop, model_path, read_in
from bench.peers.random_gguf import write_model
from bench.table import Report

FIGURES = ("decode", "prefill_128", "prefill_512")


def read_store(store: Path) -> None:
    """Bring its files into the page cache."""
    for file in store_files(store):
        read_in(file)


def store_files(store: Path) -> list[Path]:
    return sorted(store.glob("*.safetensors"))


def turn(store: Path, what: str, threads: int, plan: object = None) -> dict[str, Any]:
    """What `bench.cpu.turn` measures, in a fresh process.

    Raises:
        RuntimeError: it failed; with the end of what it said.
    """
    command = [sys.executable, "-m", "bench.cpu.turn", str(store), what, "--threads", str(threads)]
    if plan is not None:
        command += ["--plan", json.dumps(plan)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def peer_turn(engine: LlamaCpp, path: Path, threads: int) -> dict[str, Any]:
    """The same of llama.cpp, in its fastest setting: weights repacked when it loads them."""
    runs = [engine.decode(path, threads)]
    runs += [engine.prefill(path, threads, tokens) for tokens in (128, 512)]
    rates = dict(zip(FIGURES, (run.tokens_per_second for run in runs), strict=True))
    return {**rates, "major_faults": max(run.major_faults for run in runs)}


def measure_model(report: Report, cache: Path, layers: int, threads: int, rounds: int) -> None:
    """Turn by turn, each file read into the page cache before its turn, untimed.

    Two files of 15 GB do not fit into most memories together: the other's is given back first, so
    that nobody's turn begins with memory in small pieces.
    """
    store, engine = int4_store(cache, layers), build(cache)
    path = write_model(model_path(cache, layers), layers)
    ours, theirs = [], []
    for _ in range(rounds):
        drop(path)
        read_store(store)
        ours.append(turn(store, "speed", threads))
        for file in store_files(store):
            drop(file)
        read_in(path)
        theirs.append(peer_turn(engine, path, threads))
    report.table(
        f"{layers} layers, everything int4, beside llama.cpp Q4_0; tokens/s, {rounds} rounds",
        ["", "xverse", "llama.cpp", "ratio, median (worst to best)"],
    )
    for figure in FIGURES:
        ratios = [a[figure] / b[figure] for a, b in zip(ours, theirs, strict=True)]
        report.row(
            figure.replace("_", " "),
            f"{median(one[figure] for one in ours):.1f}",
            f"{median(one[figure] for one in theirs):.1f}",
            f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
        )
    faults = [max(one["major_faults"] for one in side) for side in (ours, theirs)]
    report.row("major page faults", str(faults[0]), str(faults[1]), "")
    outside = [one["outside"] for one in ours]
    share = f"{median(outside):.1%} ({min(outside):.1%} to {max(outside):.1%})"
    report.row("of a token's time outside the C calls", share, "", "")


def measure_memory(report: Report, cache: Path, layers: int, threads: int, rounds: int) -> None:
    """Peak memory with a full context, and seconds from the start to the first token."""
    store = int4_store(cache, layers)
    read_store(store)
    sizes = turn(store, "memory", threads)
    read_store(store)
    starts = [_first_token(store, threads) for _ in range(rounds)]
    beyond = sizes["anonymous"] - sizes["cache"]
    report.table(f"{layers} layers, everything int4, context 4096", ["", "measured"])
    report.row("peak resident memory, context full", f"{sizes['peak'] / 1e9:.2f} GB")
    report.row("of it keys and values (bf16)", f"{sizes['cache'] / 1e9:.2f} GB")
    report.row("anonymous beyond these", f"{beyond / 1e9:.2f} GB")
    report.row("start to first token, 16-token prompt, warm cache", f"{median(starts):.2f} s")


def _first_token(store: Path, threads: int) -> float:
    """Seconds until the command line shows a token."""
    prompt = "one two three four five six seven eight"
    command = [sys.executable, "-m", "xverse_cli.main", "generate", "--model", str(store), "--raw"]
    command += ["--device", "cpu", "--threads", str(threads), "--max-tokens", "1", prompt]
    started = perf_counter()
    subprocess.run(command, capture_output=True, check=True)
    return perf_counter() - started
