"""The routed experts on the host: in pinned memory as far as the system allows, else as pages of
the store.

A pinned layer is a copy in the program's own memory, which the device can read by itself; the
others stay mapped, are computed by the CPU while decoding, and reach the device through a buffer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from xverse_kernels.packing import ExpertBlocks
from xverse_runtime.host_reader import Copies, copy_each
from xverse_runtime.offload.policy import Key
from xverse_runtime.offload.transfer import OffloadDevice


class HostExperts:
    """The blocks of all layers, and which of them uploads can read."""

    def __init__(self, layers: Sequence[ExpertBlocks], experts: int) -> None:
        """
        Args:
            layers: of each layer the blocks as they are mapped, shared experts behind the routed.
            experts: routed experts of a layer.
        """
        self.layout = layers[0].layout
        self.experts = experts
        self._blocks = [layer.blocks for layer in layers]
        self._shared = [layer.blocks[experts:] for layer in layers]
        self._pinned = [False] * len(layers)

    @property
    def layers(self) -> int:
        return len(self._blocks)

    @property
    def pinned_layers(self) -> int:
        return sum(self._pinned)

    def some(self, layer: int, table: Tensor) -> ExpertBlocks:
        """The experts of a layer that a table names; they come out in fp32."""
        return ExpertBlocks(self._blocks[layer], self.layout, torch.float32, table)

    def block(self, key: Key) -> Tensor:
        """uint8 [block_bytes]."""
        return self._blocks[key[0]][key[1]]

    def is_pinned(self, layer: int) -> bool:
        return self._pinned[layer]

    def shared(self, layer: int) -> Tensor:
        """uint8 [shared experts, block_bytes], as mapped."""
        return self._shared[layer]

    def pin(
        self,
        device: OffloadDevice,
        most_bytes: int,
        on_copied: Callable[[int], None] = lambda _bytes: None,
        *,
        copy: Copies = copy_each,
        in_place: bool = False,
    ) -> None:
        """Copy layers into pinned memory, one after the other, until ``most_bytes`` are used or the
        system refuses; what was refused stays as it is mapped.

        Args:
            device: what is to read them.
            most_bytes: limit.
            on_copied: told the bytes of each layer.
            copy: makes the copies.
            in_place: the blocks are the program's own memory, and need no copy.

        Raises:
            IntegrityError: ``checkpoint.corrupt``: a file could not be read.
        """
        for layer in range(self.layers):
            if self._pinned[layer]:
                continue
            size = self.experts * self.layout.block_bytes
            if size > most_bytes:
                return
            mapped = own = self._blocks[layer][: self.experts]
            if not in_place:
                try:
                    own = torch.empty_like(mapped)
                except (RuntimeError, MemoryError):  # torch says RuntimeError when malloc fails
                    return
                copy([(mapped, own)])
            if not device.pin(own):
                return
            self._blocks[layer], self._pinned[layer] = own, True
            most_bytes -= size
            on_copied(size)
