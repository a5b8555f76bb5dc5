"""Tests that need a GPU: collected only by ``pytest -m gpu``, skipped where there is none.

Otherwise they would load the kernels for a GPU, and the interpreter's tests want them for itself.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import bench.gpu  # noqa: F401  (puts the packages on the path in a plain checkout)

HERE = Path(__file__).parent


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    if HERE in collection_path.parents and config.getoption("markexpr") != "gpu":
        return True
    return None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.gpu)
            if not torch.cuda.is_available():
                item.add_marker(pytest.mark.skip(reason="needs a CUDA or ROCm device"))
