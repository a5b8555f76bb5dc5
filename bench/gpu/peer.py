"""Hugging Face transformers on the same shape, in the same run as ours.

Its `Ernie4_5_Moe` class is this architecture exactly (normalised top-k, fp32 router, shared
experts); the weights are random.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import pairwise
from statistics import median
from typing import Any

import torch

from bench.gpu.random_model import random_decoder
from bench.gpu.runtime import GREEDY, _loop, decode_seconds
from bench.table import Report
from xverse_runtime.kv_cache import KVCache
from xverse_runtime.store.precision import PRESETS

STEPS = 24
PROMPT = 512


def measure_peer(report: Report, layers: int) -> None:
    """bf16, one sequence, short context: decoding, and a prompt of 512 tokens."""
    report.table("bf16, one sequence", ["engine", "tokens/s", "ms for 512 prompt tokens"])
    _ours(report, layers)
    model = _model(layers)
    ways: list[tuple[str, str, Callable[[Report, str, Any], None]]] = [
        ("experts eager", "eager", _row),  # batched_mm copies the experts of every token
        ("experts grouped_mm", "grouped_mm", _row),
        ("experts grouped_mm, static cache", "grouped_mm", _compiled_row),
    ]
    for way, experts, measure in ways:
        try:
            model.set_experts_implementation(experts)
            measure(report, f"transformers, {way}", model)
        except Exception as error:  # a setting that this build lacks is no result of ours
            why = " ".join(str(error).split()).replace("|", "/")
            report.row(f"transformers, {way}", f"failed: {why[:80]}", "")


def _ours(report: Report, layers: int) -> None:
    decoder, pool, config = random_decoder(PRESETS["bf16"], layers, 1024)
    seconds = decode_seconds(_loop(decoder, pool, config, GREEDY), 0)
    ids = [(place * 7919) % 100000 + 4 for place in range(PROMPT)]
    times = []
    for _ in range(4):
        torch.cuda.synchronize()
        started = time.perf_counter()
        int(decoder.forward(ids, KVCache(pool)).argmax())
        times.append(time.perf_counter() - started)
    report.row("xverse", f"{1 / seconds:.1f}", f"{median(times[1:]) * 1e3:.1f}")
    del decoder, pool
    torch.cuda.empty_cache()


def _model(layers: int) -> Any:
    import transformers
    from transformers import Ernie4_5_MoeConfig, Ernie4_5_MoeForCausalLM

    transformers.logging.set_verbosity_error()
    config = Ernie4_5_MoeConfig(
        vocab_size=100534,
        hidden_size=2560,
        intermediate_size=3456,
        num_hidden_layers=layers,
        num_attention_heads=32,
        num_key_value_heads=32,
        max_position_embeddings=8192,
        rms_norm_eps=1e-6,
        tie_word_embeddings=False,
        moe_intermediate_size=1728,
        moe_k=6,
        moe_num_experts=64,
        moe_num_shared_experts=2,
        moe_layer_start_index=0,
        moe_norm_min=1e-6,
        pad_token_id=1,
        bos_token_id=2,
        eos_token_id=3,
    )
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("cuda"), torch.no_grad():
            return Ernie4_5_MoeForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(torch.float32)


@torch.inference_mode()
def _row(report: Report, name: str, model: Any) -> None:
    from transformers import DynamicCache

    ids = torch.arange(PROMPT, device="cuda")[None] * 97 % 100000 + 4
    prompt = []
    for _ in range(4):
        torch.cuda.synchronize()
        started = time.perf_counter()
        logits = model(input_ids=ids, use_cache=True, logits_to_keep=1).logits
        int(logits[0, -1].argmax())
        prompt.append(time.perf_counter() - started)
    cache = DynamicCache(config=model.config)
    token = ids[:, :1]
    times = []
    for _ in range(STEPS):
        torch.cuda.synchronize()
        started = time.perf_counter()
        out = model(input_ids=token, past_key_values=cache, use_cache=True, logits_to_keep=1)
        token = out.logits[:, -1:].argmax(-1)
        torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    report.row(name, f"{1 / median(times[4:]):.1f}", f"{median(prompt[1:]) * 1e3:.1f}")


class _Watch:
    """A streamer that only notes when tokens come: the prompt first, all at once."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, _tokens: Any) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        """Nothing is left to be shown."""


@torch.inference_mode()
def _compiled_row(report: Report, name: str, model: Any) -> None:
    """Its own fastest settings: `generate` with a static cache compiles the forward pass, where it
    can; the row says whether it did."""
    from torch._dynamo.utils import counters

    counters.clear()
    prompt = torch.arange(8, device=model.device)[None] * 97 + 4
    options = {
        "attention_mask": torch.ones_like(prompt),
        "max_new_tokens": STEPS,
        "min_new_tokens": STEPS,
        "do_sample": False,
        "cache_implementation": "static",
    }
    model.generate(prompt, **options)  # compiles
    watch = _Watch()
    model.generate(prompt, streamer=watch, **options)
    steps = [later - earlier for earlier, later in pairwise(watch.times)]
    compiled = "compiled" if counters["stats"]["unique_graphs"] else "not compiled"
    report.row(f"{name}, {compiled}", f"{1 / median(steps[4:]):.1f}", "")
