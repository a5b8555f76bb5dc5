"""Tests that need a GPU: skipped where there is none, and collected without one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import bench.gpu  # noqa: F401  (puts the packages on the path in a plain checkout)

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.gpu)
            if not torch.cuda.is_available():
                item.add_marker(pytest.mark.skip(reason="needs a CUDA or ROCm device"))
