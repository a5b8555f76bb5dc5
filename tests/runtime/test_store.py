"""Stores: conversion, restarts, damage, and running from them."""

from __future__ import annotations

import errno
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.runtime.helpers import (
    GOLDEN,
    MOE_CHECKPOINTS,
    expected_cases,
    expected_tensors_of,
)
from xverse_kernels import reference
from xverse_kernels.packing import ExpertBlocks
from xverse_kernels.types import Routing
from xverse_runtime.config import EngineConfig, ModelConfig
from xverse_runtime.device import GPU_WORKSPACE_BYTES
from xverse_runtime.engine import Engine
from xverse_runtime.errors import IntegrityError, ResourceError, UsageError, XverseError
from xverse_runtime.fit import fitting_context
from xverse_runtime.kv_cache import KVPool
from xverse_runtime.loading import weight_bytes
from xverse_runtime.model_dir import ModelDirectory
from xverse_runtime.offload.machines import find_machine
from xverse_runtime.store import convert as convert_module
from xverse_runtime.store import place
from xverse_runtime.store.convert import ConversionPlan, convert_checkpoint
from xverse_runtime.store.manifest import MANIFEST_FILE, Manifest
from xverse_runtime.store.precision import PRESETS
from xverse_runtime.store.shard import ShardWriter
from xverse_runtime.store.verify import verify_store
from xverse_runtime.types import LoadProgress, SamplingParams

GREEDY = SamplingParams(temperature=0, max_new_tokens=24)


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """A store of a golden checkpoint, made once."""
    root = tmp_path_factory.mktemp("stores")

    def make(name: str, precision: str) -> Path:
        path = root / f"{name}-{precision}"
        if not path.exists():
            convert_checkpoint(GOLDEN / name, path, PRESETS[precision])
        return path

    return make


@pytest.fixture
def store(stores: Callable[[str, str], Path], tmp_path: Path) -> Path:
    """An int4 store to damage."""
    return Path(shutil.copytree(stores("moe-bin", "int4"), tmp_path / "store"))


def logits_of(
    path: Path, name: str, precision: str, prompt: int = 0, backend: str = "auto"
) -> Tensor:
    config = EngineConfig(device="cpu", precision=precision, backend=backend)
    engine = Engine.load(path, config)
    ids = expected_cases(name)[prompt]["prompt_token_ids"]
    return engine._decoder.forward(ids, engine._cache, logits_for=slice(None))


@pytest.mark.parametrize("name", MOE_CHECKPOINTS)
def test_bf16_is_the_direct_path_bit_for_bit(stores: Callable[[str, str], Path], name: str) -> None:
    from_store = logits_of(stores(name, "bf16"), name, "bf16", backend="reference")
    assert torch.equal(from_store, logits_of(GOLDEN / name, name, "bf16"))


@pytest.mark.parametrize("name", MOE_CHECKPOINTS)
@pytest.mark.parametrize(("precision", "limit"), [("int8", 0.02), ("int4", 0.3)])
def test_logit_error_of_the_quantised_precisions(
    stores: Callable[[str, str], Path], name: str, precision: str, limit: float
) -> None:
    for prompt in range(3):
        exact = expected_tensors_of(name)[f"logits.{prompt}"]
        logits = logits_of(stores(name, precision), name, "fp32", prompt)
        error = (logits - exact).norm(dim=1) / exact.norm(dim=1)
        # the typical token: where rounding flips a choice of experts, a token lies further off
        assert error.median() < limit


def take_experts_of(scores: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Route as the exact router did: the experts of ``scores``, layer by layer.

    Where rounding turns a choice of experts, what follows is another computation, and not a measure
    of the rounding.
    """
    layers, route = iter(scores), reference.route

    def given(x: Tensor, weight: Tensor, top_k: int) -> Routing:
        logits = route(x, weight, top_k).logits
        expert_ids = next(layers).topk(top_k).indices
        chosen = logits.softmax(-1).gather(-1, expert_ids)
        weights = chosen / (chosen.sum(-1, keepdim=True) + reference.RENORMALISE_EPS)
        return Routing(weights.to(x.dtype), expert_ids, logits)

    monkeypatch.setattr(reference, "route", given)


@pytest.mark.parametrize("name", MOE_CHECKPOINTS)
def test_int8_logits_of_all_tokens(
    stores: Callable[[str, str], Path], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within 2 % in the mean over all tokens, not only for the typical one (measured: 1.94, 1.55
    and 1.75 %)."""
    golden = expected_tensors_of(name)
    errors: list[Tensor] = []
    for prompt in range(3):
        with monkeypatch.context() as patch:
            take_experts_of(golden[f"router_logits.{prompt}"], patch)
            logits = logits_of(stores(name, "int8"), name, "fp32", prompt, "reference")
        exact = golden[f"logits.{prompt}"]
        errors.append((logits - exact).norm(dim=1) / exact.norm(dim=1))
    assert 0.001 < torch.cat(errors).mean() < 0.02


@pytest.mark.parametrize("name", ["dense-linear", "dense-dynamic"])
def test_dense_models_convert_too(name: str, tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    for file in (GOLDEN / name).iterdir():
        shutil.copy(file, tmp_path / "source")
    shutil.copy(GOLDEN / "moe-bin" / "tokenizer.json", tmp_path / "source")
    ids = expected_tensors_of(name)["ids"].tolist()[:60]
    convert_checkpoint(tmp_path / "source", tmp_path / "store", PRESETS["bf16"])
    logits = []
    for path in (tmp_path / "source", tmp_path / "store"):
        engine = Engine.load(
            path, EngineConfig(device="cpu", precision="bf16", backend="reference")
        )
        logits.append(engine._decoder.forward(ids, engine._cache, logits_for=slice(None)))
    assert torch.equal(*logits)


def test_generation_runs_from_every_precision(stores: Callable[[str, str], Path]) -> None:
    ids = expected_cases("moe-bin")[0]["prompt_token_ids"]
    for precision in PRESETS:
        engine = Engine.load(stores("moe-bin", precision), EngineConfig(device="cpu"))
        chunks = list(engine.generate(ids, GREEDY))
        assert chunks[-1].usage.completion_tokens == 24
        assert any(precision in note for note in engine.notes)


def test_text_files_and_settings_come_along(stores: Callable[[str, str], Path]) -> None:
    engine = Engine.load(stores("moe-bin", "int8"))
    published = Engine.load(GOLDEN / "moe-bin")
    assert engine.default_sampling == published.default_sampling
    assert engine.encode_prompt("北京 a") == published.encode_prompt("北京 a")
    assert engine.model_name == published.model_name


def test_expert_blocks_are_aligned_views_of_the_file(store: Path) -> None:
    engine = Engine.load(store, EngineConfig(device="cpu"))
    experts = engine._decoder._weights.layers[1].mlp.experts  # type: ignore[union-attr]
    assert isinstance(experts, ExpertBlocks)
    assert len(experts) == 18
    address = experts.blocks.data_ptr()
    assert address % 4096 == 0
    mapped = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    spans = [(int(a, 16), int(b, 16), m[-1]) for m in mapped for a, b in [m[0].split("-")]]
    file = next(name for start, end, name in spans if start <= address < end)
    assert file.endswith("layer-00001.safetensors")


def directory_bytes(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(path.iterdir())}


def test_the_same_source_gives_the_same_bytes(tmp_path: Path, store: Path) -> None:
    convert_checkpoint(GOLDEN / "moe-bin", tmp_path / "again", PRESETS["int4"], threads=1)
    assert directory_bytes(tmp_path / "again") == directory_bytes(store)


def test_progress_ends_at_the_total_and_a_plan_comes_first(tmp_path: Path) -> None:
    told: list[ConversionPlan | LoadProgress] = []
    convert_checkpoint(
        GOLDEN / "moe-gqa",
        tmp_path / "store",
        PRESETS["int8"],
        on_plan=told.append,
        progress=told.append,
    )
    plan, *steps = told
    assert isinstance(plan, ConversionPlan)
    assert plan.done_bytes == 0
    assert [step.done_bytes for step in steps] == sorted(step.done_bytes for step in steps)
    assert steps[-1] == LoadProgress(plan.total_bytes, plan.total_bytes)


class Killed(BaseException):
    """Stands for a kill: nothing in the code catches it."""


@pytest.mark.parametrize("after", [1, 2, 4])
def test_an_interrupted_conversion_goes_on(
    tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    output, finished = tmp_path / "out", []
    leave = ShardWriter.__exit__

    def leave_and_die(self: ShardWriter, *args: Any) -> None:
        if len(finished) == after:
            self._file.close()
            raise Killed
        leave(self, *args)
        finished.append(self._path.name)

    with monkeypatch.context() as patch:
        patch.setattr(ShardWriter, "__exit__", leave_and_die)
        with pytest.raises(Killed):
            convert_checkpoint(GOLDEN / "moe-bin", output, PRESETS["int4"])
    assert not output.exists()
    plans: list[ConversionPlan] = []
    convert_checkpoint(GOLDEN / "moe-bin", output, PRESETS["int4"], on_plan=plans.append)
    assert plans[0].done_bytes > 0
    assert directory_bytes(output) == directory_bytes(store)
    assert not list(tmp_path.glob("*.partial"))


CONVERT = """
import sys
from pathlib import Path
from xverse_runtime.store.convert import convert_checkpoint
from xverse_runtime.store.precision import PRESETS
print("ready", flush=True)
convert_checkpoint(Path(sys.argv[1]), Path(sys.argv[2]), PRESETS["int4"],
                   progress=lambda p: print(p.done_bytes, flush=True))
"""


def test_kill_9_leaves_nothing_that_looks_like_a_model(tmp_path: Path, store: Path) -> None:
    source = Path(shutil.copytree(GOLDEN / "moe-bin", tmp_path / "source"))
    before, output = directory_bytes(source), tmp_path / "out"
    for steps in (2, 20, 40):
        process = subprocess.Popen(
            [sys.executable, "-c", CONVERT, str(source), str(output)], stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        for _ in range(steps):
            process.stdout.readline()
        process.kill()
        process.wait()
        process.stdout.close()
        assert not output.exists()
    convert_checkpoint(source, output, PRESETS["int4"])
    assert directory_bytes(source) == before
    made, expected = directory_bytes(output), directory_bytes(store)
    assert {k: v for k, v in made.items() if k != MANIFEST_FILE} == {
        k: v for k, v in expected.items() if k != MANIFEST_FILE
    }


def test_another_precision_or_source_starts_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_args: Any) -> None:
        raise Killed

    output = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(convert_module._Job, "_finish", die)
        with pytest.raises(Killed):
            convert_checkpoint(GOLDEN / "moe-bin", output, PRESETS["int4"])
    plans: list[ConversionPlan] = []
    convert_checkpoint(GOLDEN / "moe-bin", output, PRESETS["int8"], on_plan=plans.append)
    assert plans[0].done_bytes == 0
    assert verify_store(output).precision == PRESETS["int8"]


def test_two_conversions_do_not_write_the_same_store(tmp_path: Path) -> None:
    seen: list[str] = []

    def convert_again(_plan: ConversionPlan) -> None:
        with pytest.raises(UsageError) as caught:
            convert_checkpoint(GOLDEN / "moe-bin", tmp_path / "out", PRESETS["int4"])
        seen.append(caught.value.code)

    convert_checkpoint(GOLDEN / "moe-bin", tmp_path / "out", PRESETS["int4"], on_plan=convert_again)
    assert seen == ["store.busy"]


def refused(source: Path, output: Path, precision: str = "int4") -> XverseError:
    with pytest.raises(XverseError) as caught:
        convert_checkpoint(source, output, PRESETS[precision])
    assert not (output.exists() and (output / MANIFEST_FILE).exists()) or output.name == "taken"
    return caught.value


def test_an_existing_target_is_refused(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    assert refused(GOLDEN / "moe-bin", tmp_path / "taken").code == "store.target_exists"


def test_too_small_a_disk_is_refused_before_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(place.shutil, "disk_usage", lambda _path: usage)
    error = refused(GOLDEN / "moe-bin", tmp_path / "out")
    assert isinstance(error, ResourceError)
    assert error.params["free_bytes"] == 1000
    assert not list((tmp_path / "out.partial").glob("*.safetensors"))


def test_a_disk_that_fills_up_in_the_middle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put, calls = ShardWriter._put, []

    def full(self: ShardWriter, data: Any) -> None:
        calls.append(1)
        if len(calls) > 30:
            raise OSError(errno.ENOSPC, "No space left on device")
        put(self, data)

    with monkeypatch.context() as patch:
        patch.setattr(ShardWriter, "_put", full)
        error = refused(GOLDEN / "moe-bin", tmp_path / "out")
    assert (error.code, type(error)) == ("store.disk_full", ResourceError)
    assert not list(tmp_path.rglob("*.tmp"))
    convert_checkpoint(GOLDEN / "moe-bin", tmp_path / "out", PRESETS["int4"])


def test_a_place_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_args: Any, **_kw: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", denied)
    assert refused(GOLDEN / "moe-bin", tmp_path / "out").code == "store.not_writable"


def test_a_corrupt_source_is_refused(tmp_path: Path) -> None:
    source = Path(shutil.copytree(GOLDEN / "moe-bin", tmp_path / "source"))
    shard = source / "pytorch_model-00002-of-00002.bin"
    shard.write_bytes(shard.read_bytes()[:-1000])
    error = refused(source, tmp_path / "out")
    assert (error.code, type(error)) == ("checkpoint.corrupt", IntegrityError)


def test_weights_that_are_not_finite_are_named(tmp_path: Path) -> None:
    source = Path(shutil.copytree(GOLDEN / "moe-safetensors", tmp_path / "source"))
    shard = source / "model-00001-of-00002.safetensors"
    tensors = load_file(shard)
    tensors["model.layers.0.mlp.experts.5.up_proj.weight"][3, 3] = float("nan")
    save_file(tensors, shard)
    error = refused(source, tmp_path / "out")
    assert error.code == "checkpoint.not_finite"
    assert error.params["tensor"] == "model.layers.0.mlp.experts.5.up_proj.weight"


def test_a_width_that_does_not_divide_is_refused(tmp_path: Path) -> None:
    source = Path(shutil.copytree(GOLDEN / "moe-safetensors", tmp_path / "source"))
    config = json.loads((source / "config.json").read_text())
    config["intermediate_size"] = 48
    (source / "config.json").write_text(json.dumps(config))
    error = refused(source, tmp_path / "out")
    assert (error.code, type(error)) == ("store.width", UsageError)
    assert "48" in str(error.params["detail"])


def change_manifest(store: Path, change: Callable[[dict[str, Any]], None]) -> None:
    data = json.loads((store / MANIFEST_FILE).read_text())
    change(data)
    (store / MANIFEST_FILE).write_text(json.dumps(data))


def load_error(store: Path) -> str:
    with pytest.raises(XverseError) as caught:
        Engine.load(store, EngineConfig(device="cpu"))
    return caught.value.code


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"format_version": 2}, "store.newer"),
        ({"byte_order": "big"}, "store.byte_order"),
        ({"format": "gguf"}, "store.manifest_invalid"),
        ({"format_version": "1"}, "store.manifest_invalid"),
        ({"precision": {"experts": "int4"}}, "store.manifest_invalid"),
        ({"precision": {"experts": "q3", "attention": "int8", "head": "int8"}},
         "store.manifest_invalid"),
        ({"precision": {"experts": [], "attention": "int8", "head": "int8"}},
         "store.manifest_invalid"),
        ({"files": {"config.json": {"bytes": "1", "sha256": ""}}}, "store.manifest_invalid"),
        ({"files": [1]}, "store.manifest_invalid"),
        ({"files": {"../x": {"bytes": 1, "sha256": ""}}}, "store.file_missing"),
    ],
)  # fmt: skip
def test_manifests_that_are_refused(store: Path, change: dict[str, Any], code: str) -> None:
    change_manifest(store, lambda data: data.update(change))
    assert load_error(store) == code


def test_a_store_cut_short_is_refused(store: Path) -> None:
    layer = store / "layer-00001.safetensors"
    layer.write_bytes(layer.read_bytes()[:-1])
    assert load_error(store) == "store.file_size"
    layer.unlink()
    assert load_error(store) == "store.file_missing"


def test_blocks_that_do_not_match_the_config_are_refused(store: Path) -> None:
    config = json.loads((store / "config.json").read_text())
    config["num_experts"] = 15
    text = json.dumps(config, indent=2)
    size = (store / "config.json").stat().st_size
    (store / "config.json").write_text(text + " " * (size - len(text)))
    with pytest.raises(IntegrityError) as caught:
        Engine.load(store, EngineConfig(device="cpu"))
    assert caught.value.code == "store.tensors"
    assert "model.layers.0.mlp.experts" in list(caught.value.params["tensors"])  # type: ignore[call-overload]


def test_one_changed_bit_is_found_by_verify(store: Path) -> None:
    assert verify_store(store) == Manifest.read(ModelDirectory.open(store))
    layer = store / "layer-00002.safetensors"
    data = bytearray(layer.read_bytes())
    data[-5] ^= 1
    layer.write_bytes(bytes(data))
    with pytest.raises(IntegrityError) as caught:
        verify_store(store)
    assert (caught.value.code, caught.value.params["name"]) == ("store.hash", layer.name)


def test_an_integer_precision_must_be_the_stores(store: Path) -> None:
    with pytest.raises(UsageError) as caught:
        Engine.load(store, EngineConfig(device="cpu", precision="int8"))
    assert caught.value.params == {"precision": "int8", "stored": "int4"}
    assert Engine.load(store, EngineConfig(device="cpu", precision="int4"))


def test_the_manifest_says_what_the_store_is(store: Path) -> None:
    data = json.loads((store / MANIFEST_FILE).read_text())
    assert data["precision"] == asdict(PRESETS["int4"])
    assert data["source"] == {"name": "moe-bin"}
    assert set(data["files"]) == {file.name for file in store.iterdir()} - {MANIFEST_FILE}


def test_a_folder_that_no_conversion_began_is_left_alone(tmp_path: Path) -> None:
    source = Path(shutil.copytree(GOLDEN / "moe-bin", tmp_path / "m.partial"))
    before = directory_bytes(source)
    for other in (source, GOLDEN / "moe-gqa"):
        with pytest.raises(UsageError) as caught:
            convert_checkpoint(other, tmp_path / "m", PRESETS["int4"])
        assert caught.value.code == "store.target_exists"
    assert directory_bytes(source) == before


def test_a_kill_before_the_rename_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_args: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", die)
        with pytest.raises(Killed):
            convert_checkpoint(GOLDEN / "moe-bin", tmp_path / "out", PRESETS["int4"])
    plans: list[ConversionPlan] = []
    convert_checkpoint(GOLDEN / "moe-bin", tmp_path / "out", PRESETS["int4"], on_plan=plans.append)
    assert plans[0].done_bytes == plans[0].total_bytes
    assert not (tmp_path / "out" / "progress.json").exists()


@pytest.fixture
def full_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU that is there, with 1 GiB and 3 MiB free."""
    gpu = (torch.device("cuda", 0), "a CUDA device is present")
    monkeypatch.setattr("xverse_runtime.fit.select_device", lambda _wish: gpu)
    monkeypatch.setattr("xverse_runtime.fit.free_gpu_bytes", lambda _device: 2**30 + 3 * 2**20)
    monkeypatch.setattr("xverse_runtime.fit.why_not_triton", lambda _device: None)


@pytest.mark.usefixtures("full_gpu")
def test_the_default_device_is_the_cpu_where_the_model_does_not_fit_the_gpu(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = replace(find_machine("4060"), vram_free=2**28)
    # not even with its cache in int8
    monkeypatch.setattr("xverse_runtime.fit.free_gpu_bytes", lambda _device: GPU_WORKSPACE_BYTES)
    monkeypatch.setattr("xverse_runtime.fit.measure_machine", lambda _device: full)
    engine = Engine.load(store)
    assert engine.device == "cpu"
    assert "the GPU has 1.0 GiB free" in engine.notes[0]


@pytest.mark.usefixtures("full_gpu")
def test_a_store_runs_on_the_cpu_where_triton_cannot(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("xverse_runtime.fit.free_gpu_bytes", lambda _device: 2**40)
    monkeypatch.setattr("xverse_runtime.fit.why_not_triton", lambda _device: "no C compiler")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (8, 9))
    told: list[str] = []
    engine = Engine.load(store, on_adjustment=lambda code, _facts: told.append(code))
    assert told == ["kernels.gpu_unused"]
    assert engine.device == "cpu"
    assert "Triton kernels on a GPU: no C compiler" in engine.notes[0]
    monkeypatch.setattr("xverse_runtime.fit.why_not_triton", lambda _device: None)
    assert Engine.load(store, EngineConfig(precision="fp32")).device == "cpu"


@pytest.mark.usefixtures("full_gpu")
def test_the_context_shrinks_to_what_fits_beside_the_weights(store: Path) -> None:
    directory = ModelDirectory.open(store)
    model = replace(ModelConfig.from_dir(directory), max_position_embeddings=100_000)
    gpu = torch.device("cuda", 0)
    per_token = KVPool.bytes_needed(model, 1, torch.bfloat16)
    room = 3 * 2**20 - weight_bytes(directory, model, "auto")
    fitting = fitting_context(directory, model, EngineConfig(), 100_000, gpu)
    assert fitting == max(2048, room // per_token // 256 * 256)
    wished = EngineConfig(context_length=90_000)
    assert fitting_context(directory, model, wished, 90_000, gpu) == 90_000
    assert fitting_context(directory, model, EngineConfig(), 100, gpu) == 100
    assert (
        fitting_context(directory, model, EngineConfig(), 100_000, torch.device("cpu")) == 100_000
    )
