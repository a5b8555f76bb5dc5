"""What a machine can do, in the figures that a plan and its predictions are made of.

All figures are effective ones, which programs reach, not those of a data sheet. They come from a
TOML file (`read_machine`) or are measured (`measure.py`).
"""

from __future__ import annotations

import importlib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xverse_runtime.errors import UsageError

GIB = 2**30


@dataclass(frozen=True)
class Machine:
    """One GPU, or none, and its host. Bytes, bytes per second, seconds, FLOP per second.

    Args:
        name: what users call it.
        host_total: main memory, or what a container may use of it.
        host_free: what programs can have of it without swapping.
        host_bandwidth: plain reads of main memory, by all cores together; what the processor and
            the GPU's copies share.
        cpu_expert_bandwidth: packed experts that the CPU kernels compute with, while decoding.
        cpu_flops: of the CPU kernels in a prompt.
        cpu_cores: physical ones.
        pinnable: page-locked memory that the system allows.
        disk_bandwidth: reading a file that is not in memory.
        gpu: its name; empty when there is none, and everything below is then 0.
        vram_total: as the driver reports it.
        vram_free: after the driver, the screen and this program's CUDA context took theirs.
        vram_bandwidth: plain reads of GPU memory.
        gpu_flops: of the GPU kernels in a prompt.
        link_to_gpu: copies from pinned memory.
        link_to_host: copies back.
        copy_latency: fixed cost of a small copy, including waiting for it.
        launch_per_layer: fixed cost of a layer of a decoded token, bandwidth aside.
        launch_per_token: the same of a token: sampling, and its copy to the host.
    """

    name: str
    host_total: int
    host_free: int
    host_bandwidth: float
    cpu_expert_bandwidth: float
    cpu_flops: float
    cpu_cores: int
    pinnable: int
    disk_bandwidth: float
    gpu: str = ""
    vram_total: int = 0
    vram_free: int = 0
    vram_bandwidth: float = 0.0
    gpu_flops: float = 0.0
    link_to_gpu: float = 0.0
    link_to_host: float = 0.0
    copy_latency: float = 0.0
    launch_per_layer: float = 0.0
    launch_per_token: float = 0.0

    @property
    def has_gpu(self) -> bool:
        return bool(self.gpu)

    @property
    def contention(self) -> float:
        """Share of their speed that the CPU's experts lose while one is copied to the GPU, if both
        get an equal part of a memory that is too slow for both."""
        left = max(self.host_bandwidth - self.link_to_gpu, self.host_bandwidth / 2)
        return max(0.0, 1 - left / self.cpu_expert_bandwidth)


@dataclass(frozen=True)
class _Key:
    """A number in the file: the field it sets, its unit, and what is plausible, in that unit."""

    field: str
    unit: float
    minimum: float
    maximum: float
    whole: bool = False


_HOST_KEYS = {
    "host_total_gib": _Key("host_total", GIB, 1, 65536, whole=True),
    "host_free_gib": _Key("host_free", GIB, 0, 65536, whole=True),
    "host_gb_per_s": _Key("host_bandwidth", 1e9, 1, 10_000),
    "cpu_expert_gb_per_s": _Key("cpu_expert_bandwidth", 1e9, 0.1, 10_000),
    "cpu_gflops": _Key("cpu_flops", 1e9, 1, 1e6),
    "cpu_cores": _Key("cpu_cores", 1, 1, 4096, whole=True),
    "pinnable_gib": _Key("pinnable", GIB, 0, 65536, whole=True),
    "disk_gb_per_s": _Key("disk_bandwidth", 1e9, 0.01, 1000),
}
_GPU_KEYS = {
    "vram_total_gib": _Key("vram_total", GIB, 0.5, 4096, whole=True),
    "vram_free_gib": _Key("vram_free", GIB, 0, 4096, whole=True),
    "vram_gb_per_s": _Key("vram_bandwidth", 1e9, 1, 100_000),
    "gpu_tflops": _Key("gpu_flops", 1e12, 0.1, 100_000),
    "link_to_gpu_gb_per_s": _Key("link_to_gpu", 1e9, 0.1, 2000),
    "link_to_host_gb_per_s": _Key("link_to_host", 1e9, 0.1, 2000),
    "copy_us": _Key("copy_latency", 1e-6, 0, 1e6),
    "launch_us_per_layer": _Key("launch_per_layer", 1e-6, 0, 1e6),
    "launch_us_per_token": _Key("launch_per_token", 1e-6, 0, 1e6),
}
_NAMES = ("name", "gpu")


def read_machine(path: Path) -> Machine:
    """A machine from a TOML file; ``machines/*.toml`` are examples.

    Without ``gpu`` it has none, and none of the keys about one.

    Raises:
        UsageError: ``machine.unreadable``, ``machine.invalid``, ``machine.unknown_key``,
            ``machine.missing_key`` or ``machine.bad_value``.
    """
    # Part of Python from 3.11 on.
    tomllib = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    try:
        table = tomllib.loads(path.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        detail = error.strerror or str(error)
        raise UsageError("machine.unreadable", path=str(path), detail=detail) from None
    except ValueError as error:  # not UTF-8, or not TOML
        raise UsageError("machine.invalid", path=str(path), detail=str(error)) from None
    return _Table(table, str(path)).machine()


@dataclass(frozen=True)
class _Table:
    data: dict[str, Any]
    path: str

    def machine(self) -> Machine:
        keys = {**_HOST_KEYS, **(_GPU_KEYS if "gpu" in self.data else {})}
        for key in self.data:
            if key not in keys and key not in _NAMES:
                known = [*_NAMES, *_HOST_KEYS, *_GPU_KEYS]
                raise UsageError("machine.unknown_key", path=self.path, key=key, known=known)
        values: dict[str, Any] = {
            key: self._name(key) for key in _NAMES if key == "name" or key in self.data
        }
        values |= {one.field: self._number(key, one) for key, one in keys.items()}
        machine = Machine(**values)
        self._check_parts(machine)
        return machine

    def _value(self, key: str) -> Any:
        if key not in self.data:
            raise UsageError("machine.missing_key", path=self.path, key=key)
        return self.data[key]

    def _name(self, key: str) -> str:
        value = self._value(key)
        if not isinstance(value, str) or not value.strip():
            raise self._bad(key, "a name")
        return value.strip()

    def _number(self, key: str, how: _Key) -> Any:
        value = self._value(key)
        if type(value) not in (int, float) or not how.minimum <= value <= how.maximum:
            raise self._bad(key, f"a number from {how.minimum:g} to {how.maximum:g}")
        if key == "cpu_cores" and value != int(value):
            raise self._bad(key, "a whole number")
        return int(value * how.unit) if how.whole else float(value * how.unit)

    def _check_parts(self, machine: Machine) -> None:
        """No part is larger than its whole."""
        for free, total in (("host_free", "host_total"), ("vram_free", "vram_total")):
            if getattr(machine, free) > getattr(machine, total):
                raise self._bad(f"{free}_gib", f"at most {total}_gib")
        if machine.cpu_expert_bandwidth > machine.host_bandwidth:
            raise self._bad("cpu_expert_gb_per_s", "at most host_gb_per_s")

    def _bad(self, key: str, expected: str) -> UsageError:
        value = self.data[key]
        return UsageError(
            "machine.bad_value", path=self.path, key=key, value=value, expected=expected
        )
