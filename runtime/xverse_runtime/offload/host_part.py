"""The CPU's share of a layer's experts."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from time import perf_counter

import torch

from xverse_kernels.backend import KernelBackend
from xverse_runtime.offload.host_experts import HostExperts
from xverse_runtime.offload.patience import CpuWatch
from xverse_runtime.offload.token_buffers import TokenBuffers
from xverse_runtime.offload.transfer import OffloadDevice


class HostPart:
    """Computes misses from the blocks of the host."""

    def __init__(
        self,
        host: HostExperts,
        kernels: KernelBackend,
        device: OffloadDevice,
        width: int,
        watch: CpuWatch | None,
    ) -> None:
        """
        Args:
            host: has the blocks.
            kernels: of the host, in fp32.
            device: gets the results.
            width: experts of a table.
            watch: hears of what takes long.
        """
        self._host = host
        self._kernels = kernels
        self._device = device
        self._watch = watch
        # The table, and the same memory for single numbers: writing those to a tensor takes ten
        # times as long.
        self._table = torch.full((width,), -1, dtype=torch.int32)
        self._numbers = (ctypes.c_int32 * width).from_address(self._table.data_ptr())

    def compute(self, layer: int, experts: Sequence[int], buffers: TokenBuffers) -> float:
        """Into ``buffers.from_host``, for computations from now on; returns the seconds."""
        begun, numbers = perf_counter(), self._numbers
        for expert in experts:
            numbers[expert] = expert
        blocks = self._host.some(layer, self._table)
        if self._watch is not None:
            self._watch.begin(layer, experts)
        try:
            self._kernels.expert_parts(buffers.on_host, blocks, buffers.computed)
        finally:
            if self._watch is not None:
                self._watch.end()
            for expert in experts:
                numbers[expert] = -1
        if not buffers.in_place:
            self._device.to_device(buffers.computed, buffers.from_host)
        return perf_counter() - begun
