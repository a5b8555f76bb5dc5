"""cli → runtime → kernels, never back; and the tool that says so can say no."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

RUN = "from importlinter.cli import lint_imports_command as run; run()"
PLANTS = {
    "kernels import the runtime": ("kernels/xverse_kernels", "import xverse_runtime"),
    "kernels import the command line": ("kernels/xverse_kernels", "from xverse_cli import main"),
    "the runtime imports the command line": ("runtime/xverse_runtime", "import xverse_cli"),
    "the renderer imports the runtime": (
        "xverse_cli/render/markdown",
        "from xverse_runtime import types",
    ),
}


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    paths = [str(folder), str(folder / "runtime"), str(folder / "kernels")]
    return subprocess.run(
        [sys.executable, "-c", RUN, "--no-cache"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
    )


def test_contract_holds(source_copy: Path) -> None:
    result = lint_imports(source_copy)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "2 kept, 0 broken" in result.stdout


@pytest.mark.parametrize("plant", PLANTS)
def test_violation_is_found(plant: str, source_copy: Path) -> None:
    folder, statement = PLANTS[plant]
    planted = source_copy / folder / "planted.py"
    planted.write_text(f"def late() -> None:\n    {statement}\n", encoding="utf-8")
    try:
        result = lint_imports(source_copy)
    finally:
        planted.unlink()
    assert result.returncode == 1, result.stdout + result.stderr
    assert "1 kept, 1 broken" in result.stdout
