"""Decoding on the device: the token that is sampled feeds the next step without the host.

One step is a forward pass, sampling, and moving on by one position. On a GPU it is captured once
as a CUDA graph for each length bucket and replayed; elsewhere the same function simply runs.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from xverse_runtime.kv_cache import KVPool
from xverse_runtime.model import Decoder

# Attention divides the past into parts by the longest position that a graph has to serve.
BUCKETS = (256, 1024, 4096, 1 << 30)

Sampler = Callable[[Tensor], Tensor]  # logits fp32 [T, vocab] to token ids int64 [T]


class DecodeLoop:
    """The newest token of each of T sequences, and how to get the next one."""

    def __init__(
        self,
        decoder: Decoder,
        pool: KVPool,
        sampler: Sampler,
        sequences: int = 1,
        *,
        use_graphs: bool = True,
    ) -> None:
        """``sampler`` works on fixed buffers and without the host: it becomes part of the graph."""
        device = decoder.device
        self._decoder = decoder
        self._pool = pool
        self._sampler = sampler
        self.tokens = torch.zeros(sequences, dtype=torch.int64, device=device)
        self.positions = torch.zeros(sequences, dtype=torch.int32, device=device)
        self._sequences = torch.arange(sequences, dtype=torch.int32, device=device)
        self._use_graphs = use_graphs and device.type == "cuda"
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}
        self._memory: tuple[int, int] | None = None

    @torch.inference_mode()
    def step(self, longest: int) -> None:
        """Replace every token by the one after it.

        Args:
            longest: the largest of the positions.
        """
        bucket = next(one for one in BUCKETS if longest <= one)
        bucket = min(bucket, self._pool.capacity)
        if not self._use_graphs:
            self._run(bucket)
            return
        if bucket not in self._graphs:
            self._graphs[bucket] = self._capture(bucket)
        self._graphs[bucket].replay()

    def _run(self, bucket: int) -> None:
        logits = self._decoder.step(
            self.tokens, self._pool, self._sequences, self.positions, bucket
        )
        self.tokens.copy_(self._sampler(logits))
        self.positions.add_(1)

    def _capture(self, bucket: int) -> torch.cuda.CUDAGraph:
        stream = torch.cuda.Stream(self.tokens.device)
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            # Compiles kernels and sizes buffers. It writes the cache where the first step will
            # write the same values again, and changes nothing else.
            self._decoder.step(self.tokens, self._pool, self._sequences, self.positions, bucket)
        torch.cuda.current_stream().wait_stream(stream)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._memory, stream=stream):
            self._run(bucket)
        self._memory = graph.pool()
        return graph
