"""The decoder against outputs of software that this project did not write.

Set-up: on processors with AVX-512, Intel's MKL sums in another order than on those where the
golden logits were computed, and the attention of moe-gqa amplifies the rounding: the golden logits
themselves lie 3.0e-4 from a float64 computation. `tests/conftest.py` therefore asks MKL for its
AVX2 order, with which all agree to 1.1e-4 whatever the machine.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.runtime.helpers import (
    CPU,
    GOLDEN,
    MOE_CHECKPOINTS,
    expected_cases,
    expected_tensors_of,
    load_decoder,
)
from xverse_kernels.backend import select_backend
from xverse_runtime.checkpoint import read_checkpoint
from xverse_runtime.config import ModelConfig
from xverse_runtime.kv_cache import KVCache, KVPool
from xverse_runtime.model import Decoder
from xverse_runtime.model_dir import ModelDirectory
from xverse_runtime.rope import RotaryTable
from xverse_runtime.tensors import EMBEDDING
from xverse_runtime.weights import assemble_weights

CHUNK_TOLERANCE = 5e-5
LOGIT_TOLERANCE = 2e-4
PROMPTS = range(3)


@pytest.mark.parametrize("name", MOE_CHECKPOINTS)
@pytest.mark.parametrize("prompt", PROMPTS)
def test_logits_and_router_logits(name: str, prompt: int) -> None:
    decoder, cache = load_decoder(GOLDEN / name)
    expected = expected_tensors_of(name)
    routers: dict[int, torch.Tensor] = {}
    ids = expected_cases(name)[prompt]["prompt_token_ids"]
    logits = decoder.forward(
        ids, cache, logits_for=slice(None), observer=lambda layer, x: routers.update({layer: x})
    )
    assert (logits - expected[f"logits.{prompt}"]).abs().max() < LOGIT_TOLERANCE
    stacked = torch.stack([routers[layer] for layer in range(len(routers))])
    assert stacked.shape == expected[f"router_logits.{prompt}"].shape
    assert (stacked - expected[f"router_logits.{prompt}"]).abs().max() < LOGIT_TOLERANCE


@pytest.mark.parametrize("name", MOE_CHECKPOINTS)
@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_chunked_and_cached_forward_agree_with_the_golden_logits(name: str, chunk: int) -> None:
    decoder, cache = load_decoder(GOLDEN / name)
    ids = expected_cases(name)[0]["prompt_token_ids"]
    parts = [
        decoder.forward(ids[start : start + chunk], cache, logits_for=slice(None))
        for start in range(0, len(ids), chunk)
    ]
    assert (torch.cat(parts) - expected_tensors_of(name)["logits.0"]).abs().max() < LOGIT_TOLERANCE
    assert cache.length == len(ids)


@pytest.mark.parametrize("name", MOE_CHECKPOINTS)
@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_chunked_and_cached_forward_agree_with_the_whole_prompt(name: str, chunk: int) -> None:
    # In fp64: one prompt of moe-gqa is so ill-conditioned that a processor's own order of summing
    # moves its fp32 logits by 5e-4. Norms, routers and softmax stay fp32.
    decoder, cache = load_decoder(GOLDEN / name, torch.float64)
    ids = expected_cases(name)[2]["prompt_token_ids"]
    whole = decoder.forward(ids, cache, logits_for=slice(None))
    cache.truncate(0)
    parts = [
        decoder.forward(ids[start : start + chunk], cache, logits_for=slice(None))
        for start in range(0, len(ids), chunk)
    ]
    assert (torch.cat(parts) - whole).abs().max() < CHUNK_TOLERANCE
    assert (whole - expected_tensors_of(name)["logits.2"]).abs().max() < 2 * LOGIT_TOLERANCE
    assert cache.length == len(ids)


@pytest.mark.parametrize("name", MOE_CHECKPOINTS)
def test_truncated_cache_gives_the_same_logits_as_a_fresh_one(name: str) -> None:
    decoder, cache = load_decoder(GOLDEN / name)
    ids = expected_cases(name)[0]["prompt_token_ids"]
    fresh = decoder.forward(ids, cache)
    cache.truncate(10)
    decoder.forward([5, 6, 7, 8], cache)  # another branch of the conversation
    cache.truncate(10)
    assert torch.allclose(decoder.forward(ids[10:], cache), fresh, atol=LOGIT_TOLERANCE)


@pytest.mark.parametrize("name", ["dense-linear", "dense-dynamic"])
@pytest.mark.parametrize("chunk", [100, 9])
def test_dense_models_with_scaled_rope(name: str, chunk: int) -> None:
    expected = expected_tensors_of(name)
    ids = expected["ids"].tolist()
    decoder, cache = load_decoder(GOLDEN / name, context=len(ids))
    parts = [
        decoder.forward(ids[start : start + chunk], cache, logits_for=slice(None))
        for start in range(0, len(ids), chunk)
    ]
    assert (torch.cat(parts) - expected["logits"]).abs().max() < LOGIT_TOLERANCE


@pytest.mark.parametrize("name", MOE_CHECKPOINTS)
def test_bf16_stays_near_the_exact_logits(name: str) -> None:
    decoder, cache = load_decoder(GOLDEN / name, torch.bfloat16)
    exact = expected_tensors_of(name)["logits.0"]
    logits = decoder.forward(
        expected_cases(name)[0]["prompt_token_ids"], cache, logits_for=slice(None)
    )
    assert logits.dtype == torch.float32
    # Some tokens flip an expert in bf16; the typical token stays within a few roundings.
    error = (logits - exact).norm(dim=1) / exact.norm(dim=1)
    assert error.median() < 0.03


def test_router_stays_fp32_in_bf16_models() -> None:
    decoder, cache = load_decoder(GOLDEN / "moe-bin", torch.bfloat16)
    seen: list[torch.Tensor] = []
    decoder.forward([7, 8, 9], cache, observer=lambda _layer, logits: seen.append(logits))
    assert [logits.dtype for logits in seen] == [torch.float32] * 3
    # fp32 values that a bf16 router could not have produced
    assert any((logits != logits.bfloat16().float()).any() for logits in seen)


def test_an_abandoned_forward_leaves_the_cache_as_it_was() -> None:
    decoder, cache = load_decoder(GOLDEN / "moe-safetensors")
    ids = expected_cases("moe-safetensors")[0]["prompt_token_ids"]
    decoder.forward(ids[:-1], cache)
    calls = 0

    def stop_late() -> None:
        nonlocal calls
        calls += 1
        if calls == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        decoder.forward([99], cache, between=stop_late)
    assert cache.length == len(ids) - 1
    logits = decoder.forward(ids[-1:], cache)
    expected = expected_tensors_of("moe-safetensors")["logits.0"][-1]
    assert (logits[0] - expected).abs().max() < LOGIT_TOLERANCE


def test_a_full_cache_is_refused() -> None:
    decoder, cache = load_decoder(GOLDEN / "moe-safetensors", context=4)
    with pytest.raises(IndexError, match="5 tokens in a cache of 4"):
        decoder.forward([1, 2, 3, 4, 5], cache)


def test_fp16_survives_a_residual_stream_beyond_its_range() -> None:
    directory = ModelDirectory.open(GOLDEN / "moe-bin")
    config = ModelConfig.from_dir(directory)
    tensors = dict(read_checkpoint(directory, config))
    ids = expected_cases("moe-bin")[0]["prompt_token_ids"]
    # An embedding so large that a sum of fp16 numbers would be infinite; norms take it away again.
    tensors[EMBEDDING] = tensors[EMBEDDING].float() * 60000.0
    logits = {}
    for dtype in (torch.float16, torch.float32):
        weights = assemble_weights(tensors, config, dtype, CPU)
        weights = replace(weights, embedding=tensors[EMBEDDING])
        kernels = select_backend("reference", CPU)
        decoder = Decoder(config, weights, kernels, RotaryTable(config, 64, CPU))
        logits[dtype] = decoder.forward(ids, KVCache(KVPool(config, 64, dtype, CPU)))
    assert tensors[EMBEDDING].abs().max() > torch.finfo(torch.float16).max
    assert torch.isfinite(logits[torch.float16]).all()
    difference = (logits[torch.float16] - logits[torch.float32]).norm()
    assert difference < 0.02 * logits[torch.float32].norm()
