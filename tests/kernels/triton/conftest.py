"""The Triton kernels on the CPU, in Triton's interpreter; with memory that shows what was missed.

The interpreter is chosen when triton is imported, for the whole process. `interpreter` does it for
the test modules of this folder, the only ones of the suite that import triton's language. Where
tests on a GPU were asked for, this folder stays out of their way.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from xverse_kernels.triton.launch import Workspace


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    return True if config.getoption("markexpr") == "gpu" else None


@pytest.fixture(autouse=True)
def poisoned(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Everything launchers allocate holds poison, between guards that must be there afterwards."""
    from tests.kernels.triton.interpreter import PoisonedTorch
    from xverse_kernels.triton import (
        attention,
        experts,
        launch,
        linear,
        parts,
        products,
        sampling,
    )

    monkeypatch.setenv("TRITON_INTERPRET", "1")
    poisoned_torch = PoisonedTorch()
    for module in (attention, experts, launch, linear, parts, products, sampling):
        monkeypatch.setattr(module, "torch", poisoned_torch)
    yield
    poisoned_torch.check_guards()


@pytest.fixture
def workspace(poisoned: None) -> Iterator[Workspace]:
    """Scratch memory; every kernel must leave its counters at zero."""
    from tests.kernels.triton.interpreter import CPU
    from xverse_kernels.triton.launch import Workspace

    space = Workspace(CPU)
    yield space
    assert not space.counters.any()
