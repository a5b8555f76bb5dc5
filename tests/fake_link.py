"""A link of a set bandwidth, whose copies arrive late and whose mistakes show in the bytes.

A copy reads its buffer only when it arrives, and until then its target holds garbage: whoever
overwrites a buffer too early, or uses a target too early, gets wrong bytes. A device called
``meta`` keeps nothing, for measuring with models that have no room.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable

import torch
from torch import Tensor

GARBAGE = 0xA5


class FakeCopy:
    """See `Copy`."""

    def __init__(self, staged: Tensor, target: Tensor) -> None:
        self.staged = staged
        self.target = target
        self._over = threading.Event()

    def wait(self) -> None:
        self._over.wait()

    def arrive(self) -> None:
        if self.target.device.type != "meta":
            self.target.copy_(self.staged)
        self._over.set()


class FakeLink:
    """See `Link`."""

    def __init__(
        self,
        bandwidth: float = float("inf"),
        device: str = "cpu",
        *,
        pins: Callable[[int], bool] = lambda _bytes: True,
        on_send: Callable[[], None] = lambda: None,
    ) -> None:
        """
        Args:
            bandwidth: bytes a second; of an infinite one copies arrive at once.
            device: ``cpu`` or ``meta``.
            pins: whether so many bytes, in all, can be pinned.
            on_send: called with every copy, by the thread that asks for it.
        """
        self.device = torch.device(device)
        self.bandwidth = bandwidth
        self.closed = False
        self.staging_bytes = 0
        self.pinned_bytes = 0
        self.sent_bytes = 0
        self._pins = pins
        self._on_send = on_send
        self._wire: queue.Queue[FakeCopy | None] = queue.Queue()
        self._thread = threading.Thread(target=self._carry, daemon=True)
        self._thread.start()

    def pin(self, buffer: Tensor) -> bool:
        self.staging_bytes += buffer.nbytes
        if not self._pins(self.pinned_bytes + buffer.nbytes):
            return False
        self.pinned_bytes += buffer.nbytes
        return True

    def begin(self) -> None:
        pass

    def send(self, staged: Tensor, target: Tensor) -> FakeCopy:
        self._on_send()
        assert not self.closed
        assert staged.shape == target.shape
        assert staged.is_contiguous()
        if self.device.type != "meta":
            target.copy_(torch.full_like(staged.view(torch.uint8), GARBAGE).view(staged.dtype))
        copy = FakeCopy(staged, target)
        if self.bandwidth == float("inf"):
            copy.arrive()
            self.sent_bytes += staged.nbytes
        else:
            self._wire.put(copy)
        return copy

    def finish(self) -> None:
        while self._wire.unfinished_tasks:
            time.sleep(1e-4)

    def close(self) -> None:
        self._wire.put(None)
        self._thread.join()
        self.closed = True
        self.pinned_bytes = self.staging_bytes = 0

    @torch.inference_mode()
    def _carry(self) -> None:
        free_at = 0.0  # when the wire is done with what it has
        while (copy := self._wire.get()) is not None:
            free_at = max(free_at, time.perf_counter()) + copy.staged.nbytes / self.bandwidth
            time.sleep(max(0.0, free_at - time.perf_counter()))
            copy.arrive()
            self.sent_bytes += copy.staged.nbytes
            self._wire.task_done()
