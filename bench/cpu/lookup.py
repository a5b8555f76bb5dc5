"""Prompt lookup at the true shape, with what was accepted in texts of the demo model.

Random weights write nothing that repeats. So the passes are those that a text of the demo model
takes at the costs measured at the true shape, and they are then computed there, beside as many
tokens one by one. Each token of a pass has experts of its own, as bad as it gets.
"""

from __future__ import annotations

from pathlib import Path
from statistics import median

from bench.cpu.model import read_store, turn
from bench.cpu.stores import DEMO, int4_store
from bench.table import Report
from xverse_runtime.config import EngineConfig
from xverse_runtime.engine import Engine
from xverse_runtime.lookup import replay
from xverse_runtime.types import Message, SamplingParams

QUESTION = "What is a mixture of experts?"


def demo_texts() -> dict[str, tuple[list[int], list[int]]]:
    """Prompt and reply, greedy: a question for the first time, and once more later."""
    engine = Engine.load(DEMO, EngineConfig(device="cpu"))
    params = SamplingParams(temperature=0, max_new_tokens=200)
    messages: list[Message] = []
    texts = {}
    for name in ("first time", "the same again"):
        messages.append(Message("user", QUESTION))
        prompt = engine.encode_chat(messages)
        chunks = list(engine.generate(prompt, params))
        reply = [token for chunk in chunks for token in chunk.token_ids]
        texts[name] = (prompt, reply)
        messages.append(Message("assistant", "".join(chunk.text for chunk in chunks)))
    return texts


def measure_lookup(report: Report, cache: Path, layers: int, threads: int, rounds: int) -> None:
    """Time without lookup over time with it."""
    store = int4_store(cache, layers)
    read_store(store)
    seconds = turn(store, "passes", threads)["seconds"]
    costs = ", ".join(f"{count}: {seconds[count - 1] / seconds[0]:.2f}" for count in (2, 4, 8, 16))
    report.table(
        f"{layers} layers, prompt lookup; a pass over so many tokens costs, in tokens: {costs}",
        ["reply", "tokens", "accepted of proposed", "passes", "times as fast, median of rounds"],
    )
    for name, (prompt, reply) in demo_texts().items():
        plan = replay(prompt, reply, lambda count: seconds[count - 1])
        runs = [turn(store, "passes", threads, plan) for _ in range(rounds)]
        right = f"{sum(one.accepted for one in plan)} of {sum(one.proposed for one in plan)}"
        faster = median(run["plain"] / run["lookup"] for run in runs)
        report.row(name, str(len(reply)), right, str(len(plan)), f"{faster:.2f}")
