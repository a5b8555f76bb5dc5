"""Whole models on the Triton backend against golden logits and texts."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.kernels.triton.interpreter import CPU
from tests.runtime.helpers import (
    GOLDEN,
    expected_cases,
    expected_tensors_of,
)
from xverse_kernels.backend import select_backend
from xverse_kernels.packing import BF16, INT8, ExpertBlocks, ExpertLayout, WeightFormat
from xverse_kernels.triton import tiles
from xverse_kernels.triton.tiles import GemvTile
from xverse_runtime.checkpoint import read_checkpoint
from xverse_runtime.config import EngineConfig, ModelConfig
from xverse_runtime.engine import Engine
from xverse_runtime.kv_cache import KVCache, KVPool
from xverse_runtime.model import Decoder
from xverse_runtime.model_dir import ModelDirectory
from xverse_runtime.rope import RotaryTable
from xverse_runtime.types import SamplingParams
from xverse_runtime.weights import ModelWeights, MoeWeights, assemble_weights

CONTEXT = 64
# The golden logits lie 3.0e-4 from exact ones: tests/runtime/test_parity.py.
LOGIT_TOLERANCE = 1e-3


@pytest.fixture(autouse=True)
def few_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles that suit the interpreter, whose time goes by the number of programs."""
    monkeypatch.setitem(tiles.LINEAR_FEW_ROWS, 32, GemvTile(128, 128, 1))
    monkeypatch.setitem(tiles.GATE_UP, 16, GemvTile(16, 512, 1))
    monkeypatch.setitem(tiles.DOWN, 16, GemvTile(32, 64, 1, splits=2))


def packed_weights(
    config: ModelConfig, directory: ModelDirectory, form: WeightFormat
) -> ModelWeights:
    # copies: published tensors are mapped from files, where nothing is aligned
    tensors = {name: tensor.clone() for name, tensor in read_checkpoint(directory, config).items()}
    weights = assemble_weights(tensors, config, torch.float32, CPU)
    layout = ExpertLayout(config.hidden_size, config.intermediate_size, form)
    layers = []
    for layer in weights.layers:
        assert isinstance(layer.mlp, MoeWeights)
        blocks = torch.stack([layout.pack(expert) for expert in layer.mlp.experts])
        experts = ExpertBlocks(blocks, layout, torch.float32)
        layers.append(replace(layer, mlp=replace(layer.mlp, experts=experts)))
    return replace(weights, layers=tuple(layers))


def decoder_on(backend: str, name: str, form: WeightFormat) -> Decoder:
    directory = ModelDirectory.open(GOLDEN / name)
    config = ModelConfig.from_dir(directory)
    weights = packed_weights(config, directory, form)
    rotary = RotaryTable(config, CONTEXT, CPU)
    return Decoder(config, weights, select_backend(backend, CPU), rotary)


def nothing_cached(config: ModelConfig, sequences: int = 1) -> KVPool:
    pool = KVPool(config, CONTEXT, torch.float32, CPU, sequences)
    for tensor in (*pool.keys, *pool.values):
        tensor.fill_(float("nan"))
    return pool


@pytest.mark.parametrize("name", ["moe-gqa", "moe-bin"])
def test_golden_prompts_go_on_as_expected(name: str) -> None:
    """bf16 blocks hold the checkpoints' own weights, so the golden data apply."""
    decoder, steps = decoder_on("triton", name, BF16), 3
    case, golden = expected_cases(name)[0], expected_tensors_of(name)["logits.0"]
    ids, expected = case["prompt_token_ids"], case["greedy"]["1.0"]["token_ids"][:steps]
    pool = nothing_cached(decoder.config, sequences=2)
    cache = KVCache(pool, sequence=1)
    logits = decoder.forward(ids[:-2], cache, logits_for=slice(None))
    assert (logits - golden[:-2]).abs().max() < LOGIT_TOLERANCE
    logits = decoder.forward(ids[-2:], cache)  # few tokens after a past
    assert (logits[0] - golden[-1]).abs().max() < LOGIT_TOLERANCE
    tokens = [int(logits.argmax())]
    for _ in range(steps - 1):
        logits = decoder.step(
            torch.tensor(tokens[-1:]),
            pool,
            torch.tensor([1], dtype=torch.int32),
            torch.tensor([cache.length], dtype=torch.int32),
            CONTEXT - 1,
        )
        cache.commit(tokens[-1:])
        tokens.append(int(logits.argmax()))
    assert tokens == expected


@pytest.mark.parametrize("tokens", [3, pytest.param(None, marks=pytest.mark.slow)])
def test_an_engine_says_what_the_vendors_model_said(tokens: int | None) -> None:
    """From the files to the text, as a user has it, decoding and choosing on the kernels."""
    engine = Engine.load(GOLDEN / "moe-gqa", EngineConfig(device="cpu", backend="triton"))
    assert any("kernels: triton" in note for note in engine.notes)
    for case in expected_cases("moe-gqa")[: 1 if tokens else None]:
        expected = case["greedy"]["1.0"]["token_ids"][:tokens]
        params = SamplingParams(
            temperature=0, repetition_penalty=1.0, max_new_tokens=tokens or len(expected)
        )
        chunks = engine.generate(case["prompt_token_ids"], params)
        assert [token for chunk in chunks for token in chunk.token_ids] == expected


def test_a_cache_in_int8_gives_the_references_logits() -> None:
    """A prompt and then single tokens, each on its own kernels."""
    found = []
    for backend in ("reference", "triton"):
        decoder = decoder_on(backend, "moe-gqa", BF16)
        pool = KVPool(decoder.config, CONTEXT, torch.int8, CPU, 2)
        cache = KVCache(pool, sequence=1)
        ids = expected_cases("moe-gqa")[0]["prompt_token_ids"][:20]
        logits = [decoder.forward(ids[:18], cache)]
        sequence = torch.tensor([1], dtype=torch.int32)
        for token in ids[18:]:
            position = torch.tensor([cache.length], dtype=torch.int32)
            ids_now = torch.tensor([token])
            logits.append(decoder.step(ids_now, pool, sequence, position, CONTEXT - 1))
            cache.commit([token])
        found.append(torch.cat(logits))
    # a sum in another order can move a key or a value to the next integer
    difference = (found[0] - found[1]).norm() / found[0].norm()
    assert difference < 2e-3


def test_quantised_blocks_and_two_texts_at_once_give_the_reference_tokens() -> None:
    texts = []
    for backend in ("reference", "triton"):
        decoder = decoder_on(backend, "moe-gqa", INT8)
        pool = nothing_cached(decoder.config, sequences=2)
        caches = [KVCache(pool, sequence) for sequence in range(2)]
        prompts = [case["prompt_token_ids"][:20] for case in expected_cases("moe-gqa")[:2]]
        prompts[1] = prompts[1][:18]
        first = [
            int(decoder.forward(prompt, cache).argmax())
            for prompt, cache in zip(prompts, caches, strict=True)
        ]
        sequences = torch.tensor([0, 1], dtype=torch.int32)
        positions = torch.tensor([20, 18], dtype=torch.int32)
        logits = decoder.step(torch.tensor(first), pool, sequences, positions, CONTEXT - 1)
        texts.append([first, logits.argmax(1).tolist()])
    assert texts[0] == texts[1]
