"""This machine as the runtime sees it: versions, processor, GPU, and the kernels that can run."""

from __future__ import annotations

import os
import platform
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

# What makes a difference to the kernels, of all that a processor lists.
_INSTRUCTIONS = ("avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16")
_INSTRUCTIONS_ARM = ("asimd", "asimddp", "i8mm", "sve", "sve2")


@dataclass(frozen=True)
class Gpu:
    """A device that torch offers; ``capability`` as ``8.9``, ``driver`` where it is known."""

    name: str
    capability: str
    driver: str


@dataclass(frozen=True)
class Backend:
    """Kernels by name, and why they cannot be used here; ``None`` where they can."""

    name: str
    reason: str | None


@dataclass(frozen=True)
class SystemFacts:
    """``kind`` is linux, wsl, windows or mac; ``no_gpu`` says why there is none."""

    kind: str
    system: str
    python: str
    torch: str
    triton: str
    processor: str
    instructions: tuple[str, ...]
    kernels: tuple[str, ...]
    gpu: Gpu | None
    no_gpu: str
    backends: tuple[Backend, ...]


def system_kind() -> str:
    """Which of the systems that need different advice this is."""
    if os.name == "nt":
        return "windows"
    if sys.platform == "darwin":
        return "mac"
    return "wsl" if "microsoft" in platform.release().lower() else "linux"


def look_at_system() -> tuple[SystemFacts, torch.device]:
    """The facts, and the device that ``auto`` would take."""
    import torch

    from xverse_kernels.cpu.extension import instruction_sets
    from xverse_runtime.device import select_device

    device, reason = select_device("auto")
    on_gpu = device.type == "cuda"
    facts = SystemFacts(
        kind=system_kind(),
        system=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        torch=torch.__version__,
        triton=_version("triton"),
        processor=_processor(),
        instructions=_instructions(),
        kernels=tuple(instruction_sets()),
        gpu=_gpu(device) if on_gpu else None,
        no_gpu="" if on_gpu else reason,
        backends=tuple(_backends(device)),
    )
    return facts, device


def _version(package: str) -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _gpu(device: torch.device) -> Gpu:
    import torch

    from xverse_runtime.why_no_gpu import driver_version

    major, minor = torch.cuda.get_device_capability(device)
    name = torch.cuda.get_device_name(device)
    return Gpu(name, f"{major}.{minor}", driver_version() or "")


def _backends(device: torch.device) -> list[Backend]:
    import torch

    from xverse_kernels.backend import why_not_cpu, why_not_triton

    host = torch.device("cpu")
    return [
        Backend("triton", why_not_triton(device)),
        Backend("cpu", why_not_cpu(host)),
        Backend("reference", None),
    ]


def _cpuinfo() -> dict[str, str]:
    """The first processor's lines of /proc/cpuinfo."""
    found: dict[str, str] = {}
    with suppress(OSError):
        for line in (
            Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        ):
            key, _, value = line.partition(":")
            found.setdefault(key.strip(), value.strip())
    return found


def _processor() -> str:
    return _cpuinfo().get("model name") or platform.processor() or platform.machine()


def _instructions() -> tuple[str, ...]:
    """Those of interest that Linux lists; empty elsewhere."""
    info = _cpuinfo()
    listed = set((info.get("flags") or info.get("Features") or "").split())
    return tuple(name for name in (*_INSTRUCTIONS, *_INSTRUCTIONS_ARM) if name in listed)
