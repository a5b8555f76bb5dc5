"""What a user gets from `pip install`: these three packages, whole, and nothing else."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from xverse_runtime.store.convert import convert_checkpoint
from xverse_runtime.store.precision import PRESETS

PACKAGES = {
    "xverse_cli": "xverse_cli",
    "xverse_runtime": "runtime/xverse_runtime",
    "xverse_kernels": "kernels/xverse_kernels",
}
MIB = 1024 * 1024


def run(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Python without pip's own settings: a mirror or a folder of wheels must not matter here."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("PIP_") and k != "CC"}
    clean["PIP_CONFIG_FILE"] = os.devnull
    return subprocess.run(
        [sys.executable, *arguments],
        env=clean | environment,
        cwd=cwd,
        capture_output=True,
        text=True,
    )


def pip(*arguments: str, **environment: str) -> None:
    command = ("-m", "pip", "--disable-pip-version-check", *arguments)
    result = run(*command, cwd=Path.cwd(), **environment)
    assert result.returncode == 0, result.stdout + result.stderr


def build(source: Path, folder: Path, **environment: str) -> Path:
    """A wheel of a copy of the sources: what one build leaves must not serve the next."""
    copy = shutil.copytree(source, folder / "source")
    options = ["--no-deps", "--no-build-isolation", "--no-index"]
    pip("wheel", *options, "--wheel-dir", str(folder), str(copy), **environment)
    (built,) = folder.glob("*.whl")
    return built


def installed(wheel: Path, site: Path) -> Path:
    pip("install", "--no-deps", "--no-index", "--target", str(site), str(wheel))
    return site


def in_it(site: Path, *arguments: str) -> str:
    """stdout and stderr of Python that imports from there."""
    result = run(*arguments, cwd=site, PYTHONPATH=str(site))
    assert result.returncode == 0, result.stderr
    return result.stdout + result.stderr


def names_in(wheel: Path) -> dict[str, int]:
    """File name → size."""
    with zipfile.ZipFile(wheel) as archive:
        return {entry.filename: entry.file_size for entry in archive.infolist()}


@pytest.fixture(scope="module")
def wheel(source_copy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made where there is no compiler, which is the quick way."""
    folder = tmp_path_factory.mktemp("wheel")
    (folder / "bin").mkdir()
    return build(source_copy, folder, PATH=str(folder / "bin"))


@pytest.fixture(scope="module")
def contents(wheel: Path) -> dict[str, int]:
    return names_in(wheel)


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return installed(wheel, tmp_path_factory.mktemp("installed") / "site")


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


def kinds(contents: dict[str, int]) -> set[str]:
    """Endings of the names of what is no Python, metadata or model."""
    return {
        Path(name).suffix
        for name in contents
        if name.startswith("xverse_kernels/") and not name.endswith((".py", "py.typed"))
    }


def test_without_a_compiler_there_are_no_c_kernels(contents: dict[str, int]) -> None:
    assert kinds(contents) == set()


def test_installed_wheel_runs(site: Path) -> None:
    probe = "import xverse_cli, xverse_kernels, xverse_runtime as r; print(r.__file__)"
    assert in_it(site, "-c", probe).startswith(str(site))
    assert list((site / "bin").glob("xverse*"))


GENERATE = ("-m", "xverse_cli", "generate", "-v", "--raw", "--max-tokens", "2", "--device", "cpu")


@pytest.fixture(scope="module")
def store(golden: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("store") / "int4"
    convert_checkpoint(golden / "moe-safetensors", path, PRESETS["int4"])
    return path


def test_without_c_kernels_a_store_runs_and_says_why_it_is_slow(site: Path, store: Path) -> None:
    said = in_it(site, *GENERATE, "--model", str(store), "Hello")
    assert "kernels: reference (the faster cpu kernels are missing" in said
    assert "C compiler and Python's header files" in said


def test_without_c_kernels_they_are_refused(site: Path, store: Path) -> None:
    options = ("--model", str(store), "--backend", "cpu", "Hello")
    result = run(*GENERATE, *options, cwd=site, PYTHONPATH=str(site))
    assert result.returncode == 1
    assert "The kernel backend cpu cannot be used" in result.stderr
    assert "C compiler and Python's header files" in result.stderr


def test_a_failed_build_leaves_none_of_an_earlier_one(source_copy: Path, tmp_path: Path) -> None:
    source = shutil.copytree(source_copy, tmp_path / "source")
    folder = source / "kernels" / "xverse_kernels" / "cpu"
    stale = [folder / "_native.abi3.so", folder / "_native.cpython-310-x86_64-linux-gnu.so"]
    for path in stale:
        path.write_bytes(b"of yesterday")
    result = run("setup.py", "build_ext", "--inplace", cwd=source, CC="false")
    assert result.returncode == 0, result.stderr
    assert list(folder.glob("_native*")) == []
    stale = [source / "lib" / "xverse_kernels" / "cpu" / "_native.abi3.so"]
    stale[0].parent.mkdir(parents=True)
    stale[0].write_bytes(b"of yesterday")
    os.utime(stale[0], (0, 0))
    run("setup.py", "build", "--build-lib", "lib", CC="false", cwd=source)
    assert (stale[0].parent / "extension.py").exists()
    assert not stale[0].exists()


def compiler_works(folder: Path) -> bool:
    """Whether C for Python compiles here."""
    (folder / "probe.c").write_text("#include <Python.h>\n#include <pthread.h>\n")
    include = f"-I{sysconfig.get_path('include')}"
    command = ["cc", include, "-c", "probe.c"]
    return shutil.which("cc") is not None and not subprocess.call(command, cwd=folder)


@pytest.mark.slow
def test_with_a_compiler_there_are_c_kernels(
    source_copy: Path, store: Path, tmp_path: Path
) -> None:
    """Compiled, without their sources, and found."""
    if not compiler_works(tmp_path):
        pytest.skip("no C compiler, or no header files of Python")
    wheel = build(source_copy, tmp_path)
    (extension,) = (name for name in names_in(wheel) if "_native" in name)
    assert extension.startswith("xverse_kernels/cpu/_native")
    assert kinds(names_in(wheel)) == {Path(extension).suffix}
    assert names_in(wheel)[extension] < 4 * MIB
    site = installed(wheel, tmp_path / "site")
    said = in_it(site, *GENERATE, "--model", str(store), "Hello")
    assert "kernels: cpu (" in said


@pytest.mark.slow
def test_the_source_archive_has_what_the_build_needs(source_copy: Path, tmp_path: Path) -> None:
    """All C files and headers; so has what is unpacked from it."""
    source = shutil.copytree(source_copy, tmp_path / "source")
    result = run("setup.py", "-q", "sdist", "--dist-dir", str(tmp_path), cwd=source)
    assert result.returncode == 0, result.stderr
    (archive,) = tmp_path.glob("*.tar.gz")
    shutil.unpack_archive(archive, tmp_path / "unpacked")
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    native = Path("kernels", "xverse_kernels", "cpu", "native")
    files = {path.name for path in (source / native).iterdir()}
    assert files == {path.name for path in (unpacked / native).iterdir()}
    if compiler_works(tmp_path):
        wheel = build(unpacked, tmp_path / "wheel-folder")
        assert kinds(names_in(wheel)) != set()
