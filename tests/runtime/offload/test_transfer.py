"""What `CudaQueues` does without a GPU: tests/gpu has the rest."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from xverse_runtime.offload.transfer import CudaQueues


def test_host_buffers_where_the_system_pins_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reply must not end because one more buffer, late in a session, is not pinned."""

    def refuses(_self: Tensor) -> Tensor:
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(Tensor, "pin_memory", refuses)
    queues = object.__new__(CudaQueues)  # whose streams no CPU has
    buffer = queues.host_buffer(2, 3, dtype=torch.int32)
    assert torch.equal(buffer, torch.zeros(2, 3, dtype=torch.int32))
