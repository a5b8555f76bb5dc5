"""One turn of a comparison, in a process of its own: prints a JSON object.

python -m bench.cpu.turn STORE speed|memory|passes [--threads N] [--plan JSON]
"""

from __future__ import annotations

import argparse
import json
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from types import SimpleNamespace
from typing import Any

import torch

from xverse_kernels.cpu import backend
from xverse_runtime.config import EngineConfig
from xverse_runtime.engine import Engine
from xverse_runtime.types import SamplingParams

CONTEXT = 4096
PROMPTS = (128, 512)
DECODE_AT, NEW_TOKENS = 128, 64
CALLS = ("linear", "experts", "route", "attend")  # of the extension, that a token needs


def token_ids(count: int, seed: int) -> list[int]:
    """Ids all over the vocabulary."""
    return torch.randint(
        4, 100000, (count,), generator=torch.Generator().manual_seed(seed)
    ).tolist()


def generate(engine: Engine, prompt: int, new: int, seed: int) -> Any:
    """Timings of a greedy reply without lookup."""
    params = SamplingParams(temperature=0, max_new_tokens=new)
    ids = token_ids(prompt, seed)
    *_, last = engine.generate(ids, params, ignore_end=True, lookup=False)
    return last.timings


@contextmanager
def timed_calls() -> Iterator[list[float]]:
    """Seconds of every call of the C extension, while it is entered."""
    seconds: list[float] = []

    def timed(call: Callable[..., None]) -> Callable[..., None]:
        def run(*numbers: float) -> None:
            started = perf_counter()
            call(*numbers)
            seconds.append(perf_counter() - started)

        return run

    native = backend.native
    calls = {name: timed(getattr(native, name)) for name in CALLS}
    backend.native = SimpleNamespace(**calls)
    try:
        yield seconds
    finally:
        backend.native = native


def outside(engine: Engine) -> float:
    """The share of greedy decoding that is not spent in the extension."""
    params = SamplingParams(temperature=0, max_new_tokens=NEW_TOKENS)
    replies = engine.generate(token_ids(DECODE_AT, 3), params, ignore_end=True, lookup=False)
    next(replies)
    with timed_calls() as calls:
        started = perf_counter()
        for _ in replies:
            pass
        return 1 - sum(calls) / (perf_counter() - started)


def speed(engine: Engine) -> dict[str, Any]:
    """Tokens per second of prompts and of decoding, after a warm-up as llama-bench has one."""
    generate(engine, PROMPTS[-1], 2, 0)
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_majflt
    prefill = {
        f"prefill_{tokens}": generate(engine, tokens, 1, tokens).prefill_tokens_per_s
        for tokens in PROMPTS
    }
    decode = generate(engine, DECODE_AT, NEW_TOKENS, 1).decode_tokens_per_s
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_majflt - faults
    return {**prefill, "decode": decode, "major_faults": faults, "outside": outside(engine)}


def memory(engine: Engine) -> dict[str, Any]:
    """Bytes in memory after a context that is full: all, and those that no file holds."""
    generate(engine, CONTEXT - 8, 8, 2)
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    sizes = {line.split(":")[0]: line.split()[1] for line in lines if line.endswith(" kB")}
    pool = engine._cache.pool
    cache = sum(tensor.nbytes for tensor in (*pool.keys, *pool.values))
    return {
        "peak": int(sizes["VmHWM"]) * 1024,
        "anonymous": int(sizes["RssAnon"]) * 1024,
        "cache": cache,
    }


def passes(engine: Engine, plan: list[list[int]] | None) -> dict[str, Any]:
    """Without a plan the seconds of passes over 1 to 16 tokens; with one, a list of pairs
    (proposed, accepted), those of all its passes and of as many tokens one by one."""
    decoder, cache = engine._decoder, engine._cache
    generate(engine, PROMPTS[-1], 2, 0)
    cache.truncate(DECODE_AT)

    def timed(tokens: int, kept: int, seed: int) -> float:
        ids, length = token_ids(tokens, seed), cache.length
        started = perf_counter()
        decoder.forward(ids, cache, logits_for=slice(None)).argmax(-1).tolist()
        seconds = perf_counter() - started
        cache.truncate(length + kept)
        return seconds

    if plan is None:
        times = [[timed(count, 0, 100 * count + i) for i in range(7)] for count in range(1, 17)]
        return {"seconds": [sorted(some)[3] for some in times]}
    new = sum(1 + accepted for _, accepted in plan)
    plain = sum(timed(1, 1, i) for i in range(new))
    cache.truncate(DECODE_AT)
    looked = sum(timed(1 + proposed, 1 + right, i) for i, (proposed, right) in enumerate(plan))
    return {"plain": plain, "lookup": looked, "tokens": new}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("store", type=Path)
    parser.add_argument("what", choices=["speed", "memory", "passes"])
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--plan", type=json.loads, default=None)
    options = parser.parse_args()
    config = EngineConfig(
        device="cpu", backend="cpu", context_length=CONTEXT, threads=options.threads
    )
    engine = Engine.load(options.store, config)
    if options.what == "passes":
        print(json.dumps(passes(engine, options.plan)))
    else:
        print(json.dumps({"speed": speed, "memory": memory}[options.what](engine)))


if __name__ == "__main__":
    main()
