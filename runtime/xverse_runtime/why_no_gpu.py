"""Why torch cannot compute on a GPU here, and what to install."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Sequence
from pathlib import Path

import torch

# The oldest driver branch of each CUDA major version (CUDA compatibility guide).
OLDEST_DRIVER = {11: 450, 12: 525, 13: 580}
DRIVER_FILE = Path("/proc/driver/nvidia/version")
# Builds of torch that differ in the GPUs and drivers that they serve (torch's support matrix): for
# CUDA 12.6, compute capability 5.0 to 8.9; for CUDA 13.0, from 7.5 on.
_INSTALL = "pip install --force-reinstall torch --index-url https://download.pytorch.org/whl"
OLD_BUILD, NEW_BUILD = f"{_INSTALL}/cu126", f"{_INSTALL}/cu130"
OLD_BUILD_CUDA, OLD_BUILD_CAPABILITY = 12, (5, 0)


def why_no_gpu(driver_file: Path = DRIVER_FILE) -> str | None:
    """Why torch has no GPU to offer, or cannot compute on the one that it has, and what would
    help; ``driver_file`` is where Linux tells the driver's version."""
    if torch.version.cuda is None and torch.version.hip is None:
        return (
            "this build of torch has no GPU support; for an NVIDIA GPU install one that has:"
            f" {NEW_BUILD}"
        )
    if torch.cuda.is_available():
        if torch.version.cuda is None:
            return None  # AMD's names of architectures are not numbers that can be compared
        return why_not_built_for(torch.cuda.get_device_capability(), torch.cuda.get_arch_list())
    if torch.version.cuda is None:
        return "torch finds no AMD GPU (is the amdgpu driver loaded?)"
    return _why_no_cuda(torch.version.cuda, driver_file)


def _why_no_cuda(cuda: str, driver_file: Path) -> str:
    """Why a torch for this version of CUDA finds no device."""
    needed = OLDEST_DRIVER.get(int(cuda.split(".")[0]), max(OLDEST_DRIVER.values()))
    if on_windows():
        return (
            f"no NVIDIA driver answers. For an NVIDIA GPU install the driver for Windows, {needed}"
            " or newer, from www.nvidia.com/drivers (for WSL too: none inside Linux) and restart"
        )
    driver = driver_version(driver_file)
    if driver is None:
        package = f"nvidia-driver-{max(OLDEST_DRIVER.values())}"
        return (
            f"no NVIDIA driver is loaded here. For an NVIDIA GPU install {needed} or newer and"
            f" restart. Ubuntu: sudo apt install {package} (RTX 50: {package}-open);"
            " others: www.nvidia.com/drivers"
        )
    branch = int(driver.split(".")[0])
    if branch >= needed:
        return (
            f"the NVIDIA driver {driver} is loaded but shows no GPU. Where nvidia-smi shows none"
            " either: restart after an update of the driver, start a container with --gpus all;"
            " where it does: unset CUDA_VISIBLE_DEVICES"
        )
    if branch < OLDEST_DRIVER[OLD_BUILD_CUDA]:
        return (
            f"the NVIDIA driver {driver} is too old for torch's CUDA {cuda}, which needs {needed}:"
            " update the driver"
        )
    return (
        f"the NVIDIA driver {driver} is too old for torch's CUDA {cuda}, which needs {needed}:"
        " update the driver, or, for a GPU up to compute capability 8.9, install a torch for an"
        f" older CUDA ({OLD_BUILD})"
    )


def why_not_built_for(capability: tuple[int, int], built: Sequence[str]) -> str | None:
    """Why a build of torch cannot compute on a GPU: there is no code for it.

    Args:
        capability: of the GPU.
        built: what the build has code for, as `torch.cuda.get_arch_list` says it. ``sm_86`` is
            machine code, which runs on all later ones of the same major version; ``compute_86`` is
            compiled by the driver for any later one. With an ``a`` behind, for that one only; with
            an ``f``, within the major version.
    """
    found = [re.fullmatch(r"(sm|compute)_(\d+)(\d)([af]?)", one) for one in built]
    entries = [(one[1], (int(one[2]), int(one[3])), one[4]) for one in found if one is not None]
    if not entries or any(_runs(kind, arch, only, capability) for kind, arch, only in entries):
        return None
    shown = ".".join(map(str, capability))
    if capability < OLD_BUILD_CAPABILITY:
        return (
            f"no build of torch has code for this GPU's compute capability {shown}: compute on the"
            " CPU or on another GPU"
        )
    oldest = min(arch for _, arch, _ in entries)
    build = OLD_BUILD if capability < oldest else NEW_BUILD
    return (
        f"this build of torch has no code for this GPU's compute capability {shown}; install one"
        f" that has: {build}"
    )


def _runs(kind: str, arch: tuple[int, int], only: str, capability: tuple[int, int]) -> bool:
    if only == "a":
        return capability == arch
    same_major = capability[0] == arch[0]
    return capability >= arch and (same_major or (kind == "compute" and not only))


def driver_version(path: Path = DRIVER_FILE) -> str | None:
    """The NVIDIA kernel driver's version on Linux, such as ``580.65.06``."""
    try:
        text = path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    found = re.search(r"\s(\d+(?:\.\d+)+)\s", text)
    return None if found is None else found[1]


def on_windows() -> bool:
    """Whether the GPU's driver is one for Windows: there, and under WSL."""
    return os.name == "nt" or "microsoft" in platform.release().lower()
