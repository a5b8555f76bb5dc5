"""What is compiled while a model loads is what it launches: nothing is asked for that was not
listed, whatever the prompt, the sampling, the batch and the division between GPU and host."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.fake_device import FakeDevice
from tests.kernels.triton.interpreter import CPU
from tests.runtime.helpers import GOLDEN
from tests.runtime.offload.test_offloaded_engine import placement
from tools.aot.launches import _weights as synthetic_weights
from xverse_kernels.backend import KernelBackend
from xverse_kernels.packing import BF16, FP16, INT4, INT8, WeightFormat
from xverse_kernels.triton import attention, experts, launch, linear, parts, sampling
from xverse_kernels.triton.backend import TritonBackend
from xverse_kernels.triton.launch import Abilities, Launcher
from xverse_kernels.triton.versions import Version
from xverse_runtime import engine_parts
from xverse_runtime.config import EngineConfig, ModelConfig
from xverse_runtime.decode_loop import BUCKETS
from xverse_runtime.decoding import decode_loop
from xverse_runtime.engine import Engine
from xverse_runtime.fit import Fit
from xverse_runtime.kernel_versions import META, Usage, kernel_versions
from xverse_runtime.kv_cache import KVCache, KVPool
from xverse_runtime.loading import LoadedWeights, load_weights
from xverse_runtime.model import Decoder
from xverse_runtime.model_dir import ModelDirectory
from xverse_runtime.offload.machine import Machine
from xverse_runtime.offload.machines import find_machine
from xverse_runtime.offload.piecewise_step import PiecewiseStep
from xverse_runtime.offload.setup import ModelPlan, most_few
from xverse_runtime.rope import RotaryTable
from xverse_runtime.store.convert import convert_checkpoint
from xverse_runtime.store.precision import PRESETS
from xverse_runtime.store.synthetic import A4_2B
from xverse_runtime.types import SamplingParams
from xverse_runtime.weights import ModelWeights

H100 = Abilities("wgmma", 90)
DEVICES = {
    "sm_75": Abilities("mma", 75),
    "sm_86": Abilities("mma", 86),
    "sm_90": H100,
    "sm_100": Abilities("tcgen05", 100),
    "gfx1100": Abilities("wmma", 0),
}
CHUNK = 2048
MACHINE: Machine = find_machine("RTX 4060 8GB")
Asked = set[Version]


def lengths() -> list[int]:
    """All short prompts, and longer ones between and beside those where tiles change."""
    rough = [round(44 * 1.2**step) for step in range(21)]
    return [*range(1, 44), *rough, 263, 264, 265, 1055, 1056, 1057, CHUNK - 1, CHUNK]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("form", [BF16, INT8, INT4], ids=lambda form: form.name)
def test_no_prompt_of_the_full_model_needs_another_version(form: WeightFormat, device: str) -> None:
    abilities, old = DEVICES[device], device == "sm_75"
    dtype, form = (torch.float16, FP16 if form is BF16 else form) if old else (torch.bfloat16, form)
    config = ModelConfig.from_dict({**A4_2B, "num_hidden_layers": 1})
    weights = synthetic_weights(config, dtype, form)
    listed = set(kernel_versions(config, weights, Usage(dtype, 8192, CHUNK), abilities))
    with launch.recording(abilities) as found:
        decoder = Decoder(config, weights, TritonBackend(META), RotaryTable(config, 8192, META))
        pool = KVPool(config, 8192, dtype, META, 32)
        for tokens in lengths():
            decoder.forward([0] * tokens, KVCache(pool), logits_for=slice(-min(tokens, 3), None))
        for tokens in (1, 2, 4, 5, 8, 9, 16, 17, 32):  # a batch
            place = torch.zeros(tokens, dtype=torch.int32, device=META)
            for longest in (1, *BUCKETS[:2], 257, 1025, 8192):
                decoder.step(place.long(), pool, place, place, longest)
    assert set(found) <= listed
    # nor is anything compiled that no pass needs: only the sampler was not asked for here
    assert names(listed - set(found)) == {"candidates_kernel", "draw_kernel"}


class _Zeros:
    """torch for launchers whose kernels do not run."""

    empty = staticmethod(torch.zeros)
    empty_like = staticmethod(torch.zeros_like)

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Callable[[], Asked]:
    """Begin to write launches down instead of running them, which takes minutes. Which version is
    launched depends on no result but the router's: that says the first experts, for all tokens."""

    def begin() -> Asked:
        versions: Asked = set()

        def call(
            self: Launcher,
            _grid: tuple[int, ...],
            args: tuple[Any, ...],
            constants: dict[str, Any],
            *,
            warps: int = 4,
            stages: int = 3,
            pdl: bool = False,
            registers: int | None = None,
            device: torch.device | None = None,
        ) -> None:
            one = self.version(args, constants, warps, stages, pdl, registers)
            versions.add(one)
            if "TOP_K" in constants:
                (ids,) = (arg for name, arg in zip(one.types, args, strict=True) if "ids" in name)
                shared = range(constants["EXPERTS"], constants["EXPERTS"] + constants["SHARED"])
                ids.copy_(torch.tensor([*range(constants["TOP_K"]), *shared]))

        monkeypatch.setattr(Launcher, "__call__", call)
        for module in (attention, experts, launch, linear, parts, sampling):
            monkeypatch.setattr(module, "torch", _Zeros())
        return versions

    return begin


@dataclass
class Listing:
    """What would be compiled for the engine that was loaded last, if the CPU were a GPU."""

    versions: Asked = field(default_factory=set)
    most_few: int | None = None


@pytest.fixture
def listed(monkeypatch: pytest.MonkeyPatch) -> Listing:
    listing = Listing()

    def load(*args: Any, **options: Any) -> LoadedWeights:
        _, config, _, _, context, _ = args

        def opened(weights: Callable[[], ModelWeights], cache: torch.dtype) -> None:
            usage = Usage(cache, context, CHUNK, listing.most_few)
            abilities = launch.device_abilities(CPU)
            listing.versions = set(kernel_versions(config, weights(), usage, abilities))

        return load_weights(*args, **{**options, "on_opened": opened})

    monkeypatch.setattr(engine_parts, "load_weights", load)
    return listing


def names(versions: Iterable[Version]) -> set[str]:
    return {one.kernel for one in versions}


def reply(engine: Engine, ids: list[int], params: SamplingParams) -> None:
    for _ in engine.generate(ids, params):
        pass


GREEDY = SamplingParams(temperature=0, max_new_tokens=3)
RANDOM = SamplingParams(temperature=0.8, top_k=20, top_p=0.9, max_new_tokens=3, seed=1)
PROMPT = list(range(3, 43))
WITH_LOGITS = SamplingParams(temperature=0, max_new_tokens=3, logprobs=1)  # the host chooses


@pytest.mark.parametrize("kv", ["auto", "int8"])
@pytest.mark.parametrize("source", ["moe-bin", "moe-gqa int4", "dense-linear int8"])
def test_no_reply_needs_another_version(
    source: str, kv: str, tmp_path: Path, listed: Listing, asked: Callable[[], Asked]
) -> None:
    name, _, precision = source.partition(" ")
    path = tmp_path / "published"
    shutil.copytree(GOLDEN / name, path)
    for file in (GOLDEN / "moe-gqa").glob("tokenizer*"):  # not all of them have one
        shutil.copy(file, path)
    if precision:
        convert_checkpoint(path, path := tmp_path / precision, PRESETS[precision])
    engine = Engine.load(
        path, EngineConfig(device="cpu", backend="triton", precision="bf16", kv=kv)
    )
    versions = asked()
    reply(engine, PROMPT[:3], WITH_LOGITS)
    engine._loop = decode_loop(engine._decoder, engine._cache.pool, use_graphs=False)
    reply(engine, PROMPT, GREEDY)
    reply(engine, PROMPT[:7], RANDOM)
    for _ in engine.generate_batch([PROMPT[:2], PROMPT[:5]], [GREEDY, RANDOM]):
        pass
    assert {"candidates_kernel", "decode_attention_kernel"} <= names(versions)
    assert versions <= listed.versions


def test_no_reply_of_an_offloaded_model_needs_another_version(
    tmp_path: Path,
    listed: Listing,
    asked: Callable[[], Asked],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "int4"
    convert_checkpoint(GOLDEN / "moe-gqa", path, PRESETS["int4"])
    config = ModelConfig.from_dir(ModelDirectory.open(path))
    plan = ModelPlan(placement(config, slots=config.num_layers * config.num_experts // 2), MACHINE)

    def queues(_device: torch.device, kernels: KernelBackend) -> FakeDevice:
        return FakeDevice(random.Random(1), copy_small=kernels.copy_small)

    monkeypatch.setattr(engine_parts, "CudaQueues", queues)
    fit = Fit(CPU, "as if", 512, plan, divided=True)
    monkeypatch.setattr(engine_parts, "fit_model", lambda *_: fit)
    listed.most_few = few = most_few(plan.placement, plan.machine)
    engine = Engine.load(path, EngineConfig(device="cpu", backend="triton", precision="bf16"))
    offload = engine._offload
    assert offload is not None
    assert offload.most_few == few
    engine._prefill.chunk = CHUNK
    versions = asked()
    step = PiecewiseStep(engine._decoder, offload)
    loop = decode_loop(engine._decoder, engine._cache.pool, use_graphs=False, offloaded=step)
    for engine._loop in (None, loop):
        reply(engine, PROMPT, GREEDY if engine._loop else WITH_LOGITS)
        reply(engine, PROMPT[5:9], RANDOM)
        # of a prompt of so many tokens whole layers stream through
        reply(engine, (PROMPT * few)[: 2 * few], GREEDY)
    assert {"down_parts_kernel", "add_parts_kernel", "combine_kernel"} <= names(versions)
    assert "copy_small_kernel" in names(versions)
    assert versions <= listed.versions


def test_a_version_that_is_not_listed_is_noticed() -> None:
    """The tests above can fail."""
    config = replace(ModelConfig.from_dict({**A4_2B, "num_hidden_layers": 1}), num_layers=1)
    weights = synthetic_weights(config, torch.bfloat16, INT4)
    short = Usage(torch.bfloat16, 8192, 16)
    listed = set(kernel_versions(config, weights, short, H100))
    more = set(kernel_versions(config, weights, replace(short, chunk=4096), H100))
    assert listed < more
    kept_in_int8 = set(kernel_versions(config, weights, replace(short, cache=torch.int8), H100))
    assert kept_in_int8 - listed
    offloaded = set(kernel_versions(config, weights, replace(short, most_few=8), H100))
    assert names(offloaded - listed) >= {
        "down_parts_kernel",
        "add_parts_kernel",
        "copy_small_kernel",
    }


def test_tensors_without_data_are_for_recordings() -> None:
    with pytest.raises(LookupError):
        launch.abilities(META)
