"""Where a model is computed, on GPUs that are only described."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from xverse_kernels import backend
from xverse_kernels.reference_backend import ReferenceBackend
from xverse_runtime import fit
from xverse_runtime.config import EngineConfig, ModelConfig
from xverse_runtime.device import GPU_WORKSPACE_BYTES
from xverse_runtime.errors import ResourceError
from xverse_runtime.fit import GIB, Fit, described, fit_model, select_kernels, why_wasted
from xverse_runtime.model_dir import ModelDirectory
from xverse_runtime.model_sizes import ModelSizes
from xverse_runtime.offload.machine import Machine
from xverse_runtime.offload.machines import find_machine
from xverse_runtime.store.manifest import MANIFEST_FILE, FileRecord, Manifest
from xverse_runtime.store.precision import PRESETS
from xverse_runtime.store.synthetic import A4_2B

GPU = torch.device("cuda", 0)
CONFIG = ModelConfig.from_dict(A4_2B)
Find = Callable[..., Fit]


@pytest.fixture
def find(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Find:
    """The fit of A4.2B in int4 on a described machine. The store's weights are a hole: nobody
    looks."""

    def run(machine: Machine, *, precision: str = "int4", **wishes: object) -> Fit:
        folder = tmp_path / precision
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text(json.dumps(A4_2B), encoding="utf-8")
        size = ModelSizes(CONFIG, PRESETS[precision]).weights()
        with (folder / "weights").open("wb") as file:
            file.truncate(size)
        records = {"weights": FileRecord(size, "0" * 64)}
        manifest = Manifest(PRESETS[precision], {}, records)
        (folder / MANIFEST_FILE).write_text(manifest.to_json(), encoding="utf-8")
        wished = str(wishes.get("device", "auto"))
        chosen = torch.device("cpu") if wished == "cpu" or not machine.has_gpu else GPU
        monkeypatch.setattr(fit, "select_device", lambda _device: (chosen, "there"))
        monkeypatch.setattr(fit, "free_gpu_bytes", lambda _device: machine.vram_free)
        monkeypatch.setattr(fit, "why_not_triton", lambda _device: None)
        monkeypatch.setattr(fit, "measure_machine", lambda _device: machine)
        config = EngineConfig(**wishes)  # type: ignore[arg-type]
        context = config.context_length or CONFIG.trained_context
        return fit_model(ModelDirectory.open(folder), CONFIG, config, context)

    return run


def slots_of(found: Fit) -> float:
    assert found.offload is not None
    return found.offload.placement.slots_per_layer


def test_a_small_gpu_holds_some_of_the_experts(find: Find) -> None:
    found = find(find_machine("4060"), context_length=4096, kv="bf16")
    assert found.device == GPU
    assert slots_of(found) == pytest.approx(20, abs=2)
    assert found.context_length == 4096
    assert "experts a layer there" in found.reason


def test_a_cache_in_int8_where_it_buys_slots(find: Find) -> None:
    """`auto` leaves it to the plan; a wish is met."""
    plain = find(find_machine("4060"), context_length=4096, kv="bf16")
    for wish in ("auto", "int8"):
        found = find(find_machine("4060"), context_length=4096, kv=wish)
        assert slots_of(found) > slots_of(plain) + 2
        assert found.kv(EngineConfig(kv=wish)) == "int8"
    assert plain.kv(EngineConfig(kv="bf16")) == "bf16"
    large = find(find_machine("4090"))
    assert [large.kv(EngineConfig(kv=wish)) for wish in ("auto", "bf16", "int8")] == [
        "auto",
        "bf16",
        "int8",
    ]
    forecast = find(find_machine("4090"), forecast=True)
    assert forecast.kv(EngineConfig()) == "auto"  # it only tells, whatever it says


def test_a_large_one_holds_all(find: Find) -> None:
    found = find(find_machine("4090"))
    assert (found.device, found.offload, found.plan) == (GPU, None, None)
    assert found.context_length == CONFIG.trained_context


def test_a_gpu_that_holds_all_with_a_cache_in_int8(find: Find) -> None:
    """Nothing else shrinks below its smallest, nothing moves; and a wish is not overridden."""
    sizes = ModelSizes(CONFIG, PRESETS["int4"])
    between = (sizes.kv(CONFIG.trained_context, "bf16") + sizes.kv(8192, "int8")) // 2
    cap = sizes.weights() + GPU_WORKSPACE_BYTES + between
    found = find(find_machine("h100"), gpu_memory=cap, context_length=8192)
    assert (found.device, found.offload, found.rounds) == (GPU, None, True)
    assert found.context_length == 8192
    assert found.kv(EngineConfig()) == "int8"
    shorter = find(find_machine("h100"), gpu_memory=cap)  # the context comes first
    assert (shorter.rounds, shorter.kv(EngineConfig())) == (False, "auto")
    assert 2048 <= shorter.context_length < 8192
    explicit = find(find_machine("h100"), gpu_memory=cap, context_length=8192, kv="bf16")
    assert not explicit.rounds
    assert explicit.offload is not None
    assert explicit.offload.placement.kv == "bf16"


def test_a_large_one_with_a_cap_plays_a_small_one(find: Find) -> None:
    small = find(find_machine("4060"), context_length=4096, kv="bf16")
    assert small.offload is not None
    cap = small.offload.placement.gpu
    capped = find(find_machine("h100"), context_length=4096, kv="bf16", gpu_memory=cap)
    assert slots_of(capped) == pytest.approx(slots_of(small), abs=0.1)
    assert find(find_machine("h100"), gpu_memory=30 * GIB).offload is None


def test_no_room_at_all(find: Find) -> None:
    with pytest.raises(ResourceError, match=r"plan\.impossible"):
        find(find_machine("4060"), device="cuda", gpu_memory=GIB)
    found = find(find_machine("4060"), gpu_memory=GIB)
    assert (found.device.type, found.plan) == ("cpu", None)
    assert "the CPU alone is faster" in found.reason


def test_a_slow_gpu_is_left_alone(find: Find) -> None:
    slow = replace(find_machine("4060"), vram_bandwidth=8e9, link_to_gpu=1e9)
    found = find(slow, context_length=4096)
    assert found.device.type == "cpu"
    assert find(slow, context_length=4096, device="cuda").offload is not None


def test_a_forecast_where_it_is_wished_for(find: Find) -> None:
    for machine in (find_machine("4090"), replace(find_machine("4090"), gpu="")):
        assert find(machine).plan is None
        found = find(machine, forecast=True)
        assert found.offload is None
        assert found.plan is not None
        assert found.plan.forecast(100).tokens_per_s > 3


def test_a_gpu_that_holds_all_but_the_embedding(find: Find) -> None:
    """Everything has a slot; what is divided is the embedding, which stays on the host."""
    sizes = ModelSizes(CONFIG, PRESETS["int4"])
    whole = sizes.dense + sizes.routed + sizes.kv(4096, "bf16")
    machine = replace(find_machine("h100"), vram_total=2 * whole)
    for spare in range(600, 1800, 100):
        found = find(machine, context_length=4096, kv="bf16", gpu_memory=whole + spare * 2**20)
        if found.offload is not None and found.offload.placement.experts_resident:
            assert found.offload.placement.embedding_device == "cpu"
            return
    raise AssertionError("no such amount of memory")


@pytest.mark.parametrize(
    ("missing", "config", "reason"),
    [
        ("compiler", EngineConfig(), "Triton needs a C compiler. Debian, Ubuntu: sudo apt install"),
        ("headers", EngineConfig(), "Triton needs Python's header files. Debian, Ubuntu: sudo apt"),
        ("capability", EngineConfig(), "Triton needs compute capability 7.5, this GPU has 6.1"),
        ("", EngineConfig(precision="fp32"), "they compute in bf16 or fp16, not in fp32"),
    ],
)
def test_what_stands_in_on_a_gpu_says_why(
    missing: str, config: EngineConfig, reason: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "Python.h").touch()
    headers = tmp_path / "none" if missing == "headers" else tmp_path
    compiler = None if missing == "compiler" else "/usr/bin/cc"
    capability = (6, 1) if missing == "capability" else (8, 9)
    monkeypatch.setattr(backend.shutil, "which", lambda _name: compiler)
    monkeypatch.setattr(backend.sysconfig, "get_path", lambda _name: str(headers))
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: capability)
    kernels = select_kernels(config, CONFIG, GPU, packed=False)
    note = described(kernels, config, CONFIG, GPU, packed=False)
    assert note.startswith(f"reference (the faster triton kernels cannot run: {reason}")
    # said aloud at the start of a session where something can be installed
    wasted = why_wasted(config, GPU)
    assert (wasted or "").startswith(reason) == (missing in ("compiler", "headers"))
    assert (wasted is None) == (missing in ("capability", ""))
    assert why_wasted(EngineConfig(backend="reference"), GPU) is None


def test_what_was_asked_for_needs_no_reason() -> None:
    wish = EngineConfig(backend="reference")
    assert described(ReferenceBackend(), wish, CONFIG, GPU, packed=False) == "reference"
