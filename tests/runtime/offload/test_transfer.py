"""What `CudaQueues` does without a GPU: tests/gpu has the rest."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from xverse_runtime import link
from xverse_runtime.offload import transfer
from xverse_runtime.offload.transfer import CudaQueues

GPU = torch.device("cuda", 1)


def test_host_buffers_where_the_system_pins_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reply must not end because one more buffer, late in a session, is not pinned."""
    empty = torch.empty

    def refuses(*shape: Any, pin_memory: bool = False, **how: Any) -> Tensor:
        if pin_memory:
            raise RuntimeError("CUDA error: out of memory")
        return empty(*shape, **how)

    monkeypatch.setattr(torch, "empty", refuses)
    queues = object.__new__(CudaQueues)  # whose streams no CPU has
    buffer = queues.host_buffer(2, 3, dtype=torch.int32)
    assert torch.equal(buffer, torch.zeros(2, 3, dtype=torch.int32))
    assert not queues.reads_in_place


def test_pinned_host_buffers_are_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    def pinned(shape: Any, *, dtype: torch.dtype, pin_memory: bool) -> Tensor:
        assert pin_memory
        return torch.full(shape, -1, dtype=dtype)

    monkeypatch.setattr(torch, "empty", pinned)
    queues = object.__new__(CudaQueues)
    buffer = queues.host_buffer(3, 5, dtype=torch.bfloat16)
    assert torch.equal(buffer, torch.zeros(3, 5, dtype=torch.bfloat16))


class Copies:
    """A stream whose work may have failed."""

    def __init__(self, did: list[str], error: Exception | None) -> None:
        self._did = did
        self._error = error

    def synchronize(self) -> None:
        self._did.append("waited")
        if self._error is not None:
            raise self._error


@pytest.mark.parametrize("error", [None, RuntimeError("CUDA error: unspecified launch failure")])
def test_pinned_memory_is_given_back_when_copies_are_over_or_failed(
    monkeypatch: pytest.MonkeyPatch, error: Exception | None
) -> None:
    """Nothing else of the device is waited for: another engine may be capturing."""
    did: list[str] = []

    runtime = SimpleNamespace(cudaHostUnregister=lambda _address: did.append("unpinned"))

    def of_device(device: torch.device) -> Any:
        assert device == GPU
        return nullcontext()

    monkeypatch.setattr(torch.cuda, "cudart", lambda: runtime)
    monkeypatch.setattr(torch.cuda, "device", of_device)
    pinned = [torch.zeros(1), torch.zeros(1)]
    transfer._unregister(pinned, GPU, Copies(did, error))
    assert did == ["waited", "unpinned", "unpinned"]
    assert pinned == []


@pytest.mark.parametrize("status", [0, 2])
def test_pinning_is_for_the_engines_own_gpu(monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    """Whatever thread asks for it: each begins with the first GPU."""
    current: list[torch.device] = []

    class Current:
        def __init__(self, device: torch.device) -> None:
            self._device = device

        def __enter__(self) -> None:
            current.append(self._device)

        def __exit__(self, *_: object) -> None:
            current.pop()

    def register(_address: int, nbytes: int, _flags: int) -> int:
        assert current == [GPU]
        assert nbytes == 12
        return status

    def takes_the_error(*_shape: int, device: torch.device) -> None:
        assert current == [device]
        raise RuntimeError("CUDA error: out of memory")

    runtime = SimpleNamespace(cudaHostRegister=register)
    monkeypatch.setattr(torch.cuda, "cudart", lambda: runtime)
    monkeypatch.setattr(torch.cuda, "device", Current)
    memory = torch.zeros(3)
    monkeypatch.setattr(torch, "zeros", takes_the_error)
    assert link.pin_pages(memory, GPU) == (status == 0)
    assert current == []
