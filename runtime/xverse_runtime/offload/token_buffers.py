"""Fixed buffers on host and device for a pass of a few tokens: what graphs were captured with."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from xverse_kernels.types import RoutedTokens
from xverse_runtime.offload.transfer import OffloadDevice


@dataclass(frozen=True)
class TokenBuffers:
    """For T tokens of S slots each.

    Args:
        on_host: what the router chose, as the host has it once it has waited; in fp32.
        guesses: where the next layer's router would send the tokens by now, in the same way.
        computed: fp32 [T, S, H] by the CPU.
        hits: the same on the device, of the experts that it has.
        late: of those that crossed the link for this layer.
        from_host: ``computed`` where the device can read it: itself, or a copy.
    """

    on_host: RoutedTokens
    guesses: Tensor
    computed: Tensor
    hits: Tensor
    late: Tensor
    from_host: Tensor

    @classmethod
    def like(cls, routed: RoutedTokens, tokens: int, device: OffloadDevice) -> TokenBuffers:
        """For passes of ``tokens``, otherwise like this one."""
        shape = (tokens, routed.expert_ids.shape[1], routed.normed.shape[1])
        computed = device.host_buffer(*shape, dtype=torch.float32)
        in_place = device.reads_in_place
        return cls(
            *_on_host(routed, tokens, device),
            computed=computed,
            hits=device.empty(*shape, dtype=torch.float32),
            late=device.empty(*shape, dtype=torch.float32),
            from_host=computed if in_place else device.empty(*shape, dtype=torch.float32),
        )

    def beside(self, routed: RoutedTokens, device: OffloadDevice) -> TokenBuffers:
        """The same, but for a choice of its own."""
        on_host, guesses = _on_host(routed, len(self.guesses), device)
        return replace(self, on_host=on_host, guesses=guesses)

    def first(self, tokens: int) -> TokenBuffers:
        """The same memory, for fewer tokens."""
        return TokenBuffers(
            RoutedTokens(*(one[:tokens] for one in self.on_host)),
            self.guesses[:tokens],
            self.computed[:tokens],
            self.hits[:tokens],
            self.late[:tokens],
            self.from_host[:tokens],
        )

    @property
    def in_place(self) -> bool:
        """Whether the device reads ``computed`` where it lies."""
        return self.from_host.data_ptr() == self.computed.data_ptr()


def _on_host(
    routed: RoutedTokens, tokens: int, device: OffloadDevice
) -> tuple[RoutedTokens, Tensor]:
    """Buffers for a choice and for guesses at the next one."""

    def buffer(like: Tensor) -> Tensor:
        dtype = torch.float32 if like.is_floating_point() else like.dtype
        return device.host_buffer(tokens, *like.shape[1:], dtype=dtype)

    return RoutedTokens(*map(buffer, routed)), buffer(routed.expert_ids)
