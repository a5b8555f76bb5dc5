"""Described machines: files, loose names, and the measured machine."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from time import perf_counter

import pytest
import torch
from torch import Tensor

from xverse_runtime.errors import UsageError
from xverse_runtime.offload import measure
from xverse_runtime.offload.hit_rates import PUBLISHED, hit_rate
from xverse_runtime.offload.machine import GIB, Machine, read_machine
from xverse_runtime.offload.machines import FOLDER, find_machine, known_machines
from xverse_runtime.offload.measure import measure_machine

EXAMPLE = (FOLDER / "rtx-4060-8gb.toml").read_text(encoding="utf-8")


def changed(tmp_path: Path, old: str, new: str) -> Path:
    assert old in EXAMPLE
    path = tmp_path / "machine.toml"
    path.write_text(EXAMPLE.replace(old, new), encoding="utf-8")
    return path


def refused(path: Path) -> UsageError:
    with pytest.raises(UsageError) as caught:
        read_machine(path)
    assert caught.value.params["path"] == str(path)
    return caught.value


def test_a_file_is_read_in_its_units() -> None:
    machine = read_machine(FOLDER / "rtx-4060-8gb.toml")
    assert machine.gpu == "NVIDIA GeForce RTX 4060"
    assert machine.vram_total == int(7.75 * GIB)
    assert machine.vram_bandwidth == 250e9
    assert machine.link_to_gpu == 12.5e9
    assert machine.copy_latency == pytest.approx(12e-6)
    assert machine.gpu_flops == 12e12
    assert (machine.cpu_cores, machine.has_gpu) == (8, True)


def test_a_machine_without_a_gpu_needs_no_keys_about_one(tmp_path: Path) -> None:
    host = [line for line in EXAMPLE.splitlines() if line.startswith(("name", "host", "cpu"))]
    host += [line for line in EXAMPLE.splitlines() if line.startswith(("pinnable", "disk"))]
    path = tmp_path / "host.toml"
    path.write_text("\n".join(host), encoding="utf-8")
    machine = read_machine(path)
    assert not machine.has_gpu
    assert machine.vram_total == 0
    path.write_text("\n".join([*host, "copy_us = 3"]), encoding="utf-8")
    assert refused(path).code == "machine.unknown_key"


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    error = refused(changed(tmp_path, "copy_us = 12", "# copy_us = 12"))
    assert (error.code, error.params["key"]) == ("machine.missing_key", "copy_us")


def test_an_unknown_key_is_named(tmp_path: Path) -> None:
    error = refused(changed(tmp_path, "copy_us = 12", "copy_us = 12\ncopy_ms = 1"))
    assert (error.code, error.params["key"]) == ("machine.unknown_key", "copy_ms")


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ("vram_gb_per_s = 250", "vram_gb_per_s = 0", "vram_gb_per_s"),
        ("vram_gb_per_s = 250", "vram_gb_per_s = inf", "vram_gb_per_s"),
        ("vram_gb_per_s = 250", "vram_gb_per_s = nan", "vram_gb_per_s"),
        ("vram_gb_per_s = 250", 'vram_gb_per_s = "250"', "vram_gb_per_s"),
        ("vram_gb_per_s = 250", "vram_gb_per_s = true", "vram_gb_per_s"),
        ("vram_gb_per_s = 250", "vram_gb_per_s = 250e9", "vram_gb_per_s"),
        ("cpu_cores = 8", "cpu_cores = 7.5", "cpu_cores"),
        ("vram_free_gib = 7.3", "vram_free_gib = 7.8", "vram_free_gib"),
        ("host_free_gib = 26", "host_free_gib = 40", "host_free_gib"),
        ("cpu_expert_gb_per_s = 35", "cpu_expert_gb_per_s = 45", "cpu_expert_gb_per_s"),
        ('name = "RTX 4060 8GB"', "name = 4060", "name"),
        ('gpu = "NVIDIA GeForce RTX 4060"', 'gpu = " "', "gpu"),
    ],
)
def test_a_bad_value_is_named(tmp_path: Path, old: str, new: str, key: str) -> None:
    error = refused(changed(tmp_path, old, new))
    assert (error.code, error.params["key"]) == ("machine.bad_value", key)


def test_files_that_are_none(tmp_path: Path) -> None:
    assert refused(tmp_path / "none.toml").code == "machine.unreadable"
    path = tmp_path / "machine.toml"
    path.write_bytes(b"name = ")
    assert refused(path).code == "machine.invalid"
    path.write_bytes(b'name = "\xff"')
    assert refused(path).code == "machine.invalid"


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("RTX 4060 8GB", "RTX 4060 8GB"),
        ("4060", "RTX 4060 8GB"),
        ("NVIDIA GeForce RTX 4060 Laptop GPU", "RTX 4060 Laptop 8GB"),
        ("4060ti", "RTX 4060 Ti 16GB"),
        ("rtx-4060 16 GiB", "RTX 4060 Ti 16GB"),
        ("3060", "RTX 3060 12GB"),
        ("H100", "H100 80GB"),
    ],
)
def test_loose_names(name: str, found: str) -> None:
    assert find_machine(name).name == found


@pytest.mark.parametrize("name", ["", "RTX", "8GB", "5090", "4060 12GB", "406"])
def test_unknown_names_list_the_known_ones(name: str) -> None:
    with pytest.raises(UsageError) as caught:
        find_machine(name)
    assert caught.value.code == "machine.unknown"
    known = caught.value.params["known"]
    assert isinstance(known, list)
    assert "RTX 4060 8GB" in known


def test_a_path_is_a_machine_too(tmp_path: Path) -> None:
    path = changed(tmp_path, '"RTX 4060 8GB"', '"my machine"')
    assert find_machine(str(path)).name == "my machine"


def test_every_machine_is_a_gpus_and_says_where_its_figures_are_from() -> None:
    files = list(FOLDER.glob("*.toml"))
    assert len(files) == len(known_machines()) == 8
    assert all(machine.has_gpu for machine in known_machines())
    assert all("ffective figures" in path.read_text(encoding="utf-8") for path in files)


@pytest.mark.parametrize("extension", ["as it is", "missing"])
def test_the_host_is_measured_in_a_moment(extension: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if extension == "missing":
        monkeypatch.setattr(measure, "native", None)
    measure_machine(torch.device("cpu"))
    started = perf_counter()
    machine = measure_machine(torch.device("cpu"))
    assert perf_counter() - started < 10  # well under 2 on an idle machine
    assert not machine.has_gpu
    of_host = [one.name for one in fields(Machine)][1:9]
    assert all(getattr(machine, name) > 0 for name in of_host)
    assert machine.host_free <= machine.host_total
    assert machine.cpu_expert_bandwidth <= machine.host_bandwidth


def test_a_link_is_measured_where_no_memory_can_be_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading must not end because a measurement would have liked more."""

    def refuses(_self: Tensor) -> Tensor:
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(Tensor, "pin_memory", refuses)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _device: None)
    monkeypatch.setattr(measure, "COPY_BYTES", 2**20)
    to_gpu, to_host, latency = measure._link(torch.device("cpu"))
    assert min(to_gpu, to_host) > 1e7
    assert 0 < latency < 1


def test_hit_rates_follow_the_published_points() -> None:
    assert len(PUBLISHED["lru"]) == 65
    assert [hit_rate("lru", slots, 64) for slots in (6, 20, 39, 59)] == [
        0.2931,
        0.5598,
        0.8065,
        0.9808,
    ]
    assert hit_rate("lru", 20.5, 64) == pytest.approx((0.5598 + 0.5746) / 2)
    assert hit_rate("lru", 10, 32) == hit_rate("lru", 20, 64)
    assert (hit_rate("lru", 0, 64), hit_rate("lru", 64, 64), hit_rate("lru", 99, 64)) == (0, 1, 1)


def test_more_slots_never_hit_less() -> None:
    rates = [hit_rate("lru", step / 10, 64) for step in range(700)]
    assert rates == sorted(rates)
