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
        guesses: where the next layer's router would send the tokens by now, in the same way.
        computed: fp32 [T, S, H] by the CPU.
        hits: the same on the device, of the experts that it has.
        late: of those that crossed the link for this layer.
        from_host: what ``computed`` was.

    Nobody may have computed ``late`` or ``from_host`` in a layer: then they must be zeros.
    """

    on_host: RoutedTokens
    guesses: Tensor
    computed: Tensor
    hits: Tensor
    late: Tensor
    from_host: Tensor
    _late_whole: _Whole
    _from_host_whole: _Whole

    @classmethod
    def like(cls, routed: RoutedTokens, tokens: int, device: OffloadDevice) -> TokenBuffers:
        """For passes of ``tokens``, otherwise like this one."""
        slots, hidden = routed.expert_ids.shape[1], routed.normed.shape[1]

        def on_host(like: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
            return device.host_buffer(tokens, *like.shape[1:], dtype=dtype)

        def parts() -> Tensor:
            return device.empty(tokens, slots, hidden, dtype=torch.float32).zero_()

        late, from_host = parts(), parts()
        return cls(
            on_host=RoutedTokens(
                normed=on_host(routed.normed),
                weights=on_host(routed.weights),
                expert_ids=on_host(routed.expert_ids, routed.expert_ids.dtype),
                logits=on_host(routed.logits),
            ),
            guesses=on_host(routed.expert_ids, routed.expert_ids.dtype),
            computed=device.host_buffer(tokens, slots, hidden, dtype=torch.float32),
            hits=parts(),
            late=late,
            from_host=from_host,
            _late_whole=_Whole(late),
            _from_host_whole=_Whole(from_host),
        )

    def first(self, tokens: int) -> TokenBuffers:
        """The same memory, for fewer tokens."""
        return TokenBuffers(
            RoutedTokens(*(one[:tokens] for one in self.on_host)),
            self.guesses[:tokens],
            self.computed[:tokens],
            self.hits[:tokens],
            self.late[:tokens],
            self.from_host[:tokens],
            self._late_whole,
            self._from_host_whole,
        )

    @cached_property
    def parts(self) -> list[Tensor]:
        """fp32 [T, S, H] each, on the device: together the experts' share of the sum."""
        return [self.hits, self.late, self.from_host]

    def cross(self, *, something: bool) -> None:
        """Whether something crosses the link for this layer: it is computed into ``late``."""
        self._late_whole.use(something)

    def come_from_host(self, *, something: bool) -> None:
        """Whether the CPU computes something of this layer: it is copied to ``from_host``."""
        self._from_host_whole.use(something)


@dataclass
class _Whole:
    """Memory that must be zeros where it is not used; shared by passes of several sizes."""

    tensor: Tensor
    is_zero: bool = True

    def use(self, something: bool) -> None:
        if not something and not self.is_zero:
            self.tensor.zero_()
        self.is_zero = not something
