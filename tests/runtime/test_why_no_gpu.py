"""Why there is no GPU, said on machines that are only described: what is missing, and what to
install."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from xverse_cli.messages.details import reworded
from xverse_cli.messages.zh_details import DETAILS
from xverse_runtime import why_no_gpu as module
from xverse_runtime.device import select_device
from xverse_runtime.errors import DeviceError
from xverse_runtime.why_no_gpu import driver_version, why_no_gpu, why_not_built_for

PIP = "pip install --force-reinstall torch --index-url https://download.pytorch.org/whl/cu"
Ask = Callable[..., str | None]


@pytest.fixture
def ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ask:
    """The reason on a machine with such a build of torch, driver and devices."""

    def run(
        cuda: str | None = None,
        hip: str | None = None,
        driver: str | None = None,
        *,
        present: bool = False,
        windows: bool = False,
    ) -> str | None:
        file = tmp_path / "version"
        if driver is not None:
            line = f"NVRM version: NVIDIA UNIX x86_64 Kernel Module  {driver}  Thu Aug  7 2025\n"
            file.write_text(line + "GCC version:  gcc version 13.3.0 (Ubuntu)\n", encoding="ascii")
        monkeypatch.setattr(torch.version, "cuda", cuda)
        monkeypatch.setattr(torch.version, "hip", hip)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: present)
        monkeypatch.setattr(module, "on_windows", lambda: windows)
        reason = why_no_gpu(file)
        if reason is not None:
            assert reworded(reason, DETAILS) != reason
        return reason

    return run


def test_a_build_without_gpus(ask: Ask) -> None:
    reason = ask()
    assert reason is not None
    assert "no GPU support" in reason
    assert reason.endswith(f"{PIP}130")


@pytest.mark.parametrize(("cuda", "needed"), [("12.6", 525), ("13.0", 580), ("14.1", 580)])
def test_no_driver(cuda: str, needed: int, ask: Ask) -> None:
    reason = ask(cuda)
    assert reason is not None
    assert f"no NVIDIA driver is loaded here. For an NVIDIA GPU install {needed} or newer" in reason
    assert "sudo apt install nvidia-driver-580" in reason
    under_windows = ask(cuda, windows=True)
    assert under_windows is not None
    assert f"the driver for Windows, {needed} or newer" in under_windows
    assert "none inside Linux" in under_windows


def test_a_driver_that_is_too_old_for_this_torch(ask: Ask) -> None:
    reason = ask("13.0", driver="570.133.07")
    assert reason is not None
    assert "driver 570.133.07 is too old for torch's CUDA 13.0, which needs 580" in reason
    assert "update the driver, or, for a GPU up to compute capability 8.9, install" in reason
    assert f"({PIP}126)" in reason


@pytest.mark.parametrize(("driver", "cuda"), [("520.61.05", "13.0"), ("470.256.02", "12.6")])
def test_a_driver_that_is_too_old_for_any(driver: str, cuda: str, ask: Ask) -> None:
    reason = ask(cuda, driver=driver)
    assert reason is not None
    assert f"driver {driver} is too old" in reason
    assert reason.endswith(": update the driver")


@pytest.mark.parametrize(("driver", "cuda"), [("580.65.06", "13.0"), ("525.60.13", "12.6")])
def test_a_driver_without_a_device(driver: str, cuda: str, ask: Ask) -> None:
    reason = ask(cuda, driver=driver)
    assert reason is not None
    assert f"the NVIDIA driver {driver} is loaded but shows no GPU" in reason
    for remedy in ("restart", "--gpus all", "CUDA_VISIBLE_DEVICES"):
        assert remedy in reason


def test_amd(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    reason = ask(hip="6.4")
    assert reason is not None
    assert "amdgpu driver" in reason
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["gfx90a"])
    assert ask(hip="6.4", present=True) is None


def test_a_wish_is_refused_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xverse_runtime.device.why_no_gpu", lambda: "for this reason")
    assert select_device("auto") == (torch.device("cpu"), "for this reason")
    with pytest.raises(DeviceError) as caught:
        select_device("cuda")
    assert caught.value.params["reason"] == "for this reason"


CU126 = ["sm_50", "sm_60", "sm_70", "sm_75", "sm_80", "sm_86"]
CU130 = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "compute_120"]


@pytest.mark.parametrize(
    ("capability", "built"),
    [
        *((one, CU126) for one in [(5, 2), (6, 1), (7, 0), (7, 5), (8, 9)]),
        *((one, CU130) for one in [(7, 5), (8, 0), (8, 9), (9, 0), (10, 3), (12, 1), (13, 0)]),
        ((9, 0), ["sm_80", "compute_80"]),
        ((9, 0), ["sm_90a"]),
        ((10, 3), ["sm_100f"]),
        ((10, 3), ["compute_100f"]),
        ((8, 0), ["gfx942"]),  # what nobody can read is no reason to leave a GPU alone
        ((8, 0), []),
    ],
)
def test_builds_with_code_for_a_gpu(capability: tuple[int, int], built: list[str]) -> None:
    assert why_not_built_for(capability, built) is None


@pytest.mark.parametrize(
    ("capability", "built", "remedy"),
    [
        ((6, 1), CU130, f"{PIP}126"),
        ((7, 0), CU130, f"{PIP}126"),
        ((9, 0), CU126, f"{PIP}130"),
        ((12, 0), CU126, f"{PIP}130"),
        ((8, 0), ["sm_86"], f"{PIP}126"),
        ((9, 1), ["sm_90a"], f"{PIP}130"),
        ((12, 0), ["sm_100f", "compute_100a", "compute_100f"], f"{PIP}130"),
        ((3, 7), CU126, "compute on the CPU or on another GPU"),
    ],
)
def test_builds_without(capability: tuple[int, int], built: list[str], remedy: str) -> None:
    reason = why_not_built_for(capability, built)
    assert reason is not None
    assert f"code for this GPU's compute capability {capability[0]}.{capability[1]}" in reason
    assert reason.endswith(remedy)
    assert reworded(reason, DETAILS) != reason


def test_a_gpu_that_torch_was_not_built_for_is_left_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (6, 1))
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: CU130)
    device, reason = select_device("auto")
    assert device.type == "cpu"
    with pytest.raises(DeviceError) as caught:
        select_device("cuda")
    assert caught.value.params["reason"] == reason
    assert reason.endswith(f"{PIP}126")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 9))
    assert select_device("auto")[0] == torch.device("cuda", 0)


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Rel", "580.65.06"),
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  470.256.02  Thu", "470.256.02"),
        ("NVRM version: something a.b else", None),
        ("", None),
    ],
)
def test_versions_of_drivers(text: str, version: str | None, tmp_path: Path) -> None:
    file = tmp_path / "version"
    file.write_text(text, encoding="ascii")
    assert driver_version(file) == version
    assert driver_version(tmp_path / "none") is None
