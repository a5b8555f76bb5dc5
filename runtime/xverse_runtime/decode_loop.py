"""Decoding on the device: the token that is chosen feeds the next step without the host.

One step is a forward pass, a choice, and moving on by one position. On a GPU it is captured as a
CUDA graph, once for each length bucket, and replayed; elsewhere the same function simply runs. The
host reads tokens while the next step is under way.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from xverse_kernels.backend import TokenSampler
from xverse_runtime.graph_capture import ERROR_MODE, uncollected
from xverse_runtime.kv_cache import KVPool
from xverse_runtime.link import pinned_if_possible
from xverse_runtime.model import Decoder

# A graph divides attention's work for the longest past that it serves.
BUCKETS = (256, 1024, 1 << 30)


class OffloadedStep(Protocol):
    """A step whose experts are not all on the device: like `Decoder.step`, and ``choose`` takes the
    logits. Always called with the same ``pool``, ``sequences`` and ``positions``."""

    def __call__(
        self,
        ids: Tensor,
        pool: KVPool,
        sequences: Tensor,
        positions: Tensor,
        longest: int,
        choose: Callable[[Tensor], None],
    ) -> None: ...

    def reset(self) -> None:
        """Forget what was captured: keys, values or experts are elsewhere now."""


class TokenMailbox:
    """Token ids on their way from the device to the host, first in, first out."""

    def __init__(self, sequences: int, device: torch.device, depth: int = 2) -> None:
        """``depth``: how many can be under way at once."""
        self._is_gpu = device.type == "cuda"
        slots = torch.zeros(depth, sequences, dtype=torch.int64)
        self._slots = pinned_if_possible(slots) if self._is_gpu else slots
        self._events: list[torch.cuda.Event] = []
        if self._is_gpu:
            self._events = [torch.cuda.Event() for _ in range(depth)]  # type: ignore[no-untyped-call]
        self._waiting: deque[int] = deque()
        self._next = 0

    def clear(self) -> None:
        """Forget what was not taken."""
        if self._is_gpu:
            torch.cuda.current_stream().synchronize()
        self._waiting.clear()

    def post(self, tokens: Tensor) -> None:
        """Send int64 [sequences]; does not wait."""
        slot = self._next
        assert slot not in self._waiting
        self._next = (slot + 1) % len(self._slots)
        self._slots[slot].copy_(tokens, non_blocking=True)
        if self._is_gpu:
            self._events[slot].record()
        self._waiting.append(slot)

    def take(self) -> list[int]:
        """The oldest tokens; waits until they are here."""
        slot = self._waiting.popleft()
        if self._is_gpu:
            self._events[slot].synchronize()
        return self._slots[slot].tolist()


class DecodeLoop:
    """The newest token of each of T sequences, and how to get the next ones."""

    def __init__(
        self,
        decoder: Decoder,
        pool: KVPool,
        sampler: TokenSampler,
        *,
        use_graphs: bool = True,
        offloaded: OffloadedStep | None = None,
    ) -> None:
        """``pool`` and ``sampler`` are for the same sequences.

        Args:
            decoder: computes.
            pool: its keys and values.
            sampler: works on fixed buffers and without the host: it becomes part of the graph.
            use_graphs: capture steps as CUDA graphs where there are any.
            offloaded: runs steps in which the host has a part, in place of ``decoder``.
        """
        device = decoder.device
        self._decoder = decoder
        self._pool = pool
        self.sampler = sampler
        sequences = pool.sequences
        self.positions = torch.zeros(sequences, dtype=torch.int32, device=device)
        self._sequences = torch.arange(sequences, dtype=torch.int32, device=device)
        self._advance = torch.zeros(sequences, dtype=torch.int32, device=device)
        self._offloaded = offloaded
        self._use_graphs = use_graphs and device.type == "cuda" and offloaded is None
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}
        self._memory: Any = None  # the graphs' memory pool, one for all
        self.reached = 0  # places of a sequence that may have been written by steps

    @property
    def waits(self) -> bool:
        """Whether `step` returns only when it is nearly over, since the host has a part in it."""
        return self._offloaded is not None

    def start(self, sequence: int, position: int) -> None:
        """A sequence's newest token stands at ``position``; from now on steps move it on."""
        self.positions[sequence] = position
        self._advance[sequence] = 1
        self.reached = position

    def pause(self, sequence: int) -> None:
        """Steps compute nothing of use for a sequence, and write only to its first place."""
        self.positions[sequence] = 0
        self._advance[sequence] = 0

    @torch.inference_mode()
    def step(self, longest: int) -> Tensor:
        """Compute the newest token of every sequence and choose the one after it: int64 [T].

        Args:
            longest: the largest of the positions; not beyond the pool's capacity.
        """
        self.reached = max(self.reached, longest + 1)
        bucket = min(next(one for one in BUCKETS if longest <= one), self._pool.capacity)
        if self._offloaded is not None:
            self._offloaded(
                self._inputs(), self._pool, self._sequences, self.positions, bucket, self._choose
            )
        elif not self._use_graphs:
            self._run(bucket)
        else:
            if bucket not in self._graphs:
                self._graphs[bucket] = self._capture(bucket)
            self._graphs[bucket].replay()
        return self.sampler.tokens

    def reset(self) -> None:
        """Capture steps anew, since something that they read is elsewhere now."""
        self._graphs.clear()
        self._memory = None
        if self._offloaded is not None:
            self._offloaded.reset()

    def _run(self, bucket: int) -> None:
        self._choose(self._forward(bucket))

    def _choose(self, logits: Tensor) -> None:
        self.sampler(logits)
        self.positions.add_(self._advance)

    def _forward(self, bucket: int) -> Tensor:
        return self._decoder.step(
            self._inputs(), self._pool, self._sequences, self.positions, bucket
        )

    def _inputs(self) -> Tensor:
        """The newest tokens: a sequence that broke off has the token -1, and goes on with another
        until it is replaced."""
        return self.sampler.tokens.clamp(min=0)

    def _capture(self, bucket: int) -> torch.cuda.CUDAGraph:
        stream = _capture_stream(self.positions.device)
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            # Compiles kernels and sizes buffers. It writes to the cache what the first step will
            # write there again, and changes nothing else.
            self._forward(bucket)
        torch.cuda.current_stream().wait_stream(stream)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with (
            uncollected(),
            torch.cuda.graph(
                graph, pool=self._memory, stream=stream, capture_error_mode=ERROR_MODE
            ),
        ):
            self._run(bucket)
        self._memory = graph.pool()
        return graph


@functools.cache
def _capture_stream(device: torch.device) -> torch.cuda.Stream:
    """One for all captures: torch keeps a workspace for every stream that has multiplied."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
