from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.kernels.cpu.support import SETS, poison_allocations
from xverse_kernels.cpu.backend import CpuBackend
from xverse_kernels.cpu.extension import native, why_missing


def backends(instructions: str | None, monkeypatch: pytest.MonkeyPatch) -> Iterator[CpuBackend]:
    if not SETS:
        pytest.skip(str(why_missing()))
    poison_allocations(monkeypatch)
    yield CpuBackend(instructions)
    native.set_threads(1)
    native.use(SETS[0])


@pytest.fixture(params=SETS or ["none"])
def kernels(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[CpuBackend]:
    """The backend with each instruction set that this processor has; outputs begin as NaN."""
    yield from backends(request.param, monkeypatch)


@pytest.fixture
def fastest(monkeypatch: pytest.MonkeyPatch) -> Iterator[CpuBackend]:
    """The same with the instructions that users get, for what does not depend on them."""
    yield from backends(None, monkeypatch)
