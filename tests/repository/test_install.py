"""`tools/install.sh` with stand-ins for Python and pip: what it does, and when it does nothing."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(os.name == "nt", reason="a shell script for Linux and macOS")

# Plays the interpreter and, copied into the environment, its pip. $LOG gets one line a call.
PYTHON = """#!/bin/sh
case "$*" in
    *"-m venv"*)
        echo "venv" >>"$LOG"
        for target; do :; done
        mkdir -p "$target/bin"
        rm -f "$target"/.xverse-*
        cp "$0" "$target/bin/python"
        ;;
    *"-m pip"*)
        echo "${*#*-m }" >>"$LOG"
        case "$*" in *"-e ."*) exit "${PIP_STATUS:-0}" ;; esac
        ;;
    *"version_info < (3, 10)"*) exit "${TOO_OLD:-0}" ;;
    *"ensurepip, venv"*) exit "${NO_VENV:-0}" ;;
    *"version_info[:2]"*) echo "${MINOR:-3.11}" ;;
    *"sys.version.split"*) echo "${MINOR:-3.11}.9" ;;
    *'version("torch")'*) exit 1 ;;
    *"Python.h"*) echo "${HEADERS:-True}" ;;
    *"import xverse_kernels.cpu._native"*) exit "${NOT_BUILT:-0}" ;;
esac
"""


NATIVE = Path("kernels", "xverse_kernels", "cpu", "native")


class Checkout:
    """A checkout whose path has spaces, with a `python3` that only pretends."""

    def __init__(self, folder: Path, repository: Path) -> None:
        self.path = folder / "my check out"
        (self.path / "tools").mkdir(parents=True)
        shutil.copy(repository / "tools" / "install.sh", self.path / "tools")
        shutil.copy(repository / "constraints.txt", self.path)
        shutil.copy(repository / "pyproject.toml", self.path)
        shutil.copy(repository / "setup.py", self.path)
        shutil.copytree(repository / NATIVE, self.path / NATIVE)
        self.programs = folder / "bin"
        self.programs.mkdir()
        for name in ("python3", "python3.99"):
            (self.programs / name).write_text(PYTHON, encoding="utf-8")
            (self.programs / name).chmod(0o755)
        self.log = folder / "log"

    def install(self, profile: str = "run", **settings: str) -> subprocess.CompletedProcess[str]:
        self.log.write_text("", encoding="utf-8")
        path = f"{self.programs}{os.pathsep}{os.environ['PATH']}"
        environment = {**os.environ, "PATH": path, "LOG": str(self.log), **settings}
        return subprocess.run(
            ["sh", "tools/install.sh", profile],
            cwd=self.path,
            env=environment,
            capture_output=True,
            text=True,
        )

    @property
    def calls(self) -> list[str]:
        return self.log.read_text(encoding="utf-8").splitlines()


@pytest.fixture
def checkout(tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch) -> Checkout:
    for name in ("PYTHON", "TORCH_INDEX"):
        monkeypatch.delenv(name, raising=False)
    return Checkout(tmp_path, repository)


def test_first_run_installs_and_says_so_on_stderr(checkout: Checkout) -> None:
    result = checkout.install()
    assert result.returncode == 0, result.stderr
    assert checkout.calls == [
        "venv",
        "pip install -c constraints.txt setuptools",
        "pip install -c constraints.txt --no-build-isolation -e .",
    ]
    assert "To download" in result.stderr
    assert result.stdout == ""


def test_second_run_is_silent(checkout: Checkout) -> None:
    checkout.install()
    result = checkout.install()
    assert (checkout.calls, result.stdout, result.stderr) == ([], "", "")


def test_tests_add_their_packages_and_serve_the_user(checkout: Checkout) -> None:
    checkout.install("run")
    checkout.install("test")
    assert checkout.calls[-1].endswith("-e .[test]")
    assert "venv" not in checkout.calls
    checkout.install("run")
    assert checkout.calls == []


@pytest.mark.parametrize(
    "changed",
    [
        "pyproject.toml",
        "constraints.txt",
        "setup.py",
        (NATIVE / "module.c").as_posix(),
        (NATIVE / "kernels.h").as_posix(),
    ],
)
def test_changed_sources_are_installed(changed: str, checkout: Checkout) -> None:
    checkout.install("test")
    with (checkout.path / changed).open("a", encoding="utf-8") as file:
        file.write("# a change\n")
    checkout.install("run")
    assert len(checkout.calls) == 2
    checkout.install("test")
    assert checkout.calls[-1].endswith("-e .[test]")


def test_missing_cpu_kernels_are_said_and_built_once_they_can_be(checkout: Checkout) -> None:
    result = checkout.install(NOT_BUILT="1", HEADERS="False")
    assert result.returncode == 0
    assert "CPU kernels were not built" in result.stderr
    assert "sudo apt install gcc python3.11-dev" in result.stderr
    checkout.install(HEADERS="False")
    assert checkout.calls == []
    result = checkout.install(HEADERS="True")
    assert checkout.calls[-1].endswith("-e .")
    assert "not built" not in result.stderr
    compiler = checkout.programs / "clang"
    compiler.write_text("", encoding="utf-8")
    compiler.chmod(0o755)
    checkout.install()
    assert checkout.calls[-1].endswith("-e .")
    checkout.install()
    assert checkout.calls == []


def test_failed_installation_is_tried_again(checkout: Checkout) -> None:
    result = checkout.install(PIP_STATUS="7")
    assert result.returncode == 1
    assert "retry" in result.stderr
    assert checkout.install().returncode == 0
    assert "venv" not in checkout.calls
    assert checkout.calls[-1].endswith("-e .")


def test_killed_installation_starts_afresh(checkout: Checkout) -> None:
    checkout.install(PIP_STATUS="137")
    result = checkout.install()
    assert checkout.calls[0] == "venv"
    assert "incomplete" in result.stderr
    checkout.install()
    assert checkout.calls == []


def test_moved_checkout_is_installed_again(checkout: Checkout) -> None:
    checkout.install()
    checkout.path = checkout.path.rename(checkout.path.with_name("moved"))
    checkout.install()
    assert checkout.calls[0] == "venv"
    assert checkout.calls[-1].endswith("-e .")
    checkout.install()
    assert checkout.calls == []


def test_torch_index_is_for_torch_alone_and_remembered(checkout: Checkout) -> None:
    checkout.install(TORCH_INDEX="https://example.invalid/cpu")
    with_index = [call for call in checkout.calls if "--index-url" in call]
    assert len(with_index) == 1
    assert with_index[0].startswith("pip install --index-url https://example.invalid/cpu")
    assert " --no-deps --force-reinstall torch==" in with_index[0]
    assert "venv" in checkout.calls
    checkout.install("test")
    assert not [call for call in checkout.calls if "--index-url" in call]
    checkout.install("test")
    assert checkout.calls == []
    checkout.install("run", TORCH_INDEX="https://example.invalid/cu999")
    assert "cu999" in checkout.calls[1]


def test_another_build_of_torch_brings_its_own_cuda(checkout: Checkout) -> None:
    checkout.install(TORCH_INDEX="https://example.invalid/cu999")
    relaxed = (checkout.path / ".venv" / ".xverse-constraints.txt").read_text(encoding="utf-8")
    assert "nvidia" not in relaxed
    assert "torch==" in relaxed


def test_named_python_is_used_and_kept(checkout: Checkout) -> None:
    checkout.install()
    result = checkout.install(PYTHON="python3.99", MINOR="3.11")
    assert checkout.calls == []
    (checkout.path / ".venv" / "bin" / "python").write_text("#!/bin/sh\necho 3.10\n")
    result = checkout.install(PYTHON="python3.99")
    assert "another Python" in result.stderr
    assert checkout.calls[0] == "venv"


def test_old_python_is_refused(checkout: Checkout) -> None:
    result = checkout.install(TOO_OLD="1", MINOR="3.8")
    assert result.returncode == 1
    assert "3.10 or newer, and python3 is 3.8.9" in result.stderr
    assert not (checkout.path / ".venv").exists()


@pytest.mark.parametrize(
    ("python", "package"), [("python3", "python3-venv"), ("python3.99", "python3.99-venv")]
)
def test_missing_venv_names_the_package(python: str, package: str, checkout: Checkout) -> None:
    result = checkout.install(PYTHON=python, NO_VENV="1", MINOR="3.99")
    assert result.returncode == 1
    assert f"sudo apt install {package}\n" in result.stderr
    assert not (checkout.path / ".venv").exists()


def test_missing_python(checkout: Checkout) -> None:
    result = checkout.install(PYTHON="python3.98")
    assert result.returncode == 1
    assert "python3.98: not found" in result.stderr
