"""What a user gets from `pip install`: these three packages, whole, and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

PACKAGES = {
    "xverse_cli": "xverse_cli",
    "xverse_runtime": "runtime/xverse_runtime",
    "xverse_kernels": "kernels/xverse_kernels",
}
MIB = 1024 * 1024


def pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    # pip's own settings (a mirror, a folder of wheels) must not matter here.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PIP_")}
    environment["PIP_CONFIG_FILE"] = os.devnull
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.fixture(scope="module")
def wheel(source_copy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    options = ["--no-deps", "--no-build-isolation", "--no-index"]
    pip("wheel", *options, "--wheel-dir", str(folder), str(source_copy))
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def contents(wheel: Path) -> dict[str, int]:
    """File name → size."""
    with zipfile.ZipFile(wheel) as archive:
        return {entry.filename: entry.file_size for entry in archive.infolist()}


def test_top_level_names(contents: dict[str, int]) -> None:
    names = {name.split("/")[0] for name in contents}
    metadata = {name for name in names if name.endswith(".dist-info")}
    assert names - metadata == set(PACKAGES)
    assert len(metadata) == 1


@pytest.mark.parametrize("package", PACKAGES)
def test_every_module_is_in(package: str, contents: dict[str, int], source_copy: Path) -> None:
    source = source_copy / PACKAGES[package]
    modules = {f"{package}/{path.relative_to(source).as_posix()}" for path in source.rglob("*.py")}
    assert modules == {n for n in contents if n.startswith(f"{package}/") and n.endswith(".py")}
    assert f"{package}/py.typed" in contents


def test_described_machines_are_in(contents: dict[str, int], source_copy: Path) -> None:
    folder = source_copy / "runtime" / "xverse_runtime" / "offload" / "machines"
    prefix = "xverse_runtime/offload/machines/"
    packed = {name[len(prefix) :] for name in contents if name.startswith(prefix)}
    assert packed == {path.name for path in folder.iterdir()}
    assert len(packed) >= 8


def test_demo_model_is_in_and_small(contents: dict[str, int], demo_dir: Path) -> None:
    prefix = "xverse_runtime/demo/"
    packed = {name.removeprefix(prefix) for name in contents if name.startswith(prefix)}
    assert packed == {path.name for path in demo_dir.iterdir() if path.is_file()}
    assert {"config.json", "generation_config.json"} <= packed
    assert any(name.endswith(".safetensors") for name in packed)
    assert sum(size for name, size in contents.items() if name.startswith(prefix)) < 12 * MIB


def test_installed_wheel_runs(wheel: Path, tmp_path: Path) -> None:
    pip("install", "--no-deps", "--no-index", "--target", str(tmp_path / "site"), str(wheel))
    probe = "import xverse_cli, xverse_kernels, xverse_runtime as r; print(r.__file__)"
    result = subprocess.run(
        [sys.executable, "-c", probe],
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.startswith(str(tmp_path / "site"))
    assert list((tmp_path / "site" / "bin").glob("xverse*"))
