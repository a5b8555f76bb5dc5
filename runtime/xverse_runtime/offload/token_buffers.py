"""Fixed buffers on host and device for a pass of a few tokens: what graphs were captured with."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from xverse_kernels.types import RoutedTokens
from xverse_runtime.offload.transfer import OffloadDevice


@dataclass
class TokenBuffers:
    """For T tokens of S slots each.

    Args:
        on_host: what the router chose, as the host has it once it has waited; in fp32.
        computed: fp32 [T, S, H] by the CPU.
        hits: the same on the device, of the experts that it has.
        late: of those that crossed the link for this layer.
        from_host: what ``computed`` was.

    Nobody may have computed ``late`` or ``from_host`` in a layer: then they must be zeros.
    """

    on_host: RoutedTokens
    computed: Tensor
    hits: Tensor
    late: Tensor
    from_host: Tensor
    late_is_zero: bool = True
    from_host_is_zero: bool = True

    @classmethod
    def like(cls, routed: RoutedTokens, device: OffloadDevice) -> TokenBuffers:
        """For passes of the same shape."""
        (tokens, slots), hidden = routed.expert_ids.shape, routed.normed.shape[1]

        def on_host(like: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
            return device.host_buffer(*like.shape, dtype=dtype)

        def parts() -> Tensor:
            return device.empty(tokens, slots, hidden, dtype=torch.float32).zero_()

        return cls(
            on_host=RoutedTokens(
                normed=on_host(routed.normed),
                weights=on_host(routed.weights),
                expert_ids=on_host(routed.expert_ids, routed.expert_ids.dtype),
                logits=on_host(routed.logits),
            ),
            computed=device.host_buffer(tokens, slots, hidden, dtype=torch.float32),
            hits=parts(),
            late=parts(),
            from_host=parts(),
        )

    @cached_property
    def parts(self) -> list[Tensor]:
        """fp32 [T, S, H] each, on the device: together the experts' share of the sum."""
        return [self.hits, self.late, self.from_host]

    def nothing_late(self) -> None:
        """Nothing crossed for this layer."""
        if not self.late_is_zero:
            self.late.zero_()
            self.late_is_zero = True

    def nothing_from_host(self) -> None:
        """The CPU computed nothing of this layer."""
        if not self.from_host_is_zero:
            self.from_host.zero_()
            self.from_host_is_zero = True
