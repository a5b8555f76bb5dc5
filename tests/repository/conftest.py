from __future__ import annotations

import shutil
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def source_copy(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the wheel is made from, copied, so that building leaves nothing in the checkout."""
    copy = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy2(repository / name, copy)
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info", "*.so")
    for name in ("xverse_cli", "runtime", "kernels"):
        shutil.copytree(repository / name, copy / name, ignore=ignored)
    return copy
