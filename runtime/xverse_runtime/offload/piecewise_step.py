"""A decoded token where the host has a part in every layer: what lies between is asked for at once.

The parts of a step: of each layer attention and router (with the sum of the layer before), and what
the next layer's router says to the same state, as a guess; then the experts that the device has; at
the end the head and the choice of tokens. While the device computes the first part of the next
layer, the host does what nothing waits for.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from xverse_kernels.types import RoutedTokens
from xverse_runtime.kv_cache import KVPool
from xverse_runtime.model import Decoder, DecoderLayer
from xverse_runtime.offload.offloaded_experts import ExpertOffload, Unfinished
from xverse_runtime.offload.pieces import Pieces, Recorder
from xverse_runtime.offload.token_buffers import TokenBuffers


class PiecewiseStep:
    """See `OffloadedStep`."""

    def __init__(
        self,
        decoder: Decoder,
        offload: ExpertOffload,
        recorder: Recorder | None = None,
        on_failure: Callable[[RuntimeError], None] = lambda _error: None,
    ) -> None:
        """With a recorder, parts are captured and replayed; ``on_failure`` is told if it cannot."""
        self._on_failure = on_failure
        self._decoder = decoder
        self._offload = offload
        self._recorder = recorder
        self._pieces: dict[int, Pieces] = {}  # by what `longest` is
        self._x: Tensor | None = None  # where the parts find what was embedded

    def reset(self) -> None:
        """See `OffloadedStep`."""
        self._pieces.clear()

    @torch.inference_mode()
    def __call__(
        self,
        ids: Tensor,
        pool: KVPool,
        sequences: Tensor,
        positions: Tensor,
        longest: int,
        choose: Callable[[Tensor], None],
    ) -> None:
        decoder, offload = self._decoder, self._offload
        pieces = self._pieces.setdefault(longest, Pieces(self._recorder, self._on_failure))
        attend = decoder.attend_each(pool, sequences, positions, longest)
        embedded = decoder.embed(ids)
        if self._x is None:
            self._x = torch.empty_like(embedded)
        x = self._x.copy_(embedded)
        before: tuple[int, RoutedTokens, TokenBuffers] | None = None
        unfinished: Unfinished | None = None
        pieces.begin()
        guesses_at = decoder.layers if offload.wants_guesses and len(ids) == 1 else ()
        for number, layer in enumerate(decoder.layers):
            following = guesses_at[number + 1] if number + 1 < len(guesses_at) else None

            def until_experts(
                x: Tensor = x,
                before: tuple[int, RoutedTokens, TokenBuffers] | None = before,
                number: int = number,
                layer: DecoderLayer = layer,
                following: DecoderLayer | None = following,
            ) -> tuple[Tensor, RoutedTokens, TokenBuffers]:
                x = x if before is None else offload.total(x, *before)
                x, routed = layer.until_experts(x, attend)
                guesses = None if following is None else following.route(x).expert_ids
                return x, routed, offload.begin(number, routed, guesses)

            x, routed, buffers = pieces.run(until_experts)
            chosen = offload.cache.device.mark()
            if unfinished is not None:
                offload.finish(unfinished)
            offload.prepare_hits(number)

            def hits(
                number: int = number, routed: RoutedTokens = routed, buffers: TokenBuffers = buffers
            ) -> None:
                offload.launch_hits(number, routed, buffers)

            pieces.run(hits)
            unfinished = offload.misses(
                number, routed, buffers, chosen, guessed=following is not None
            )
            before = number, routed, buffers
        assert before is not None
        last = before
        pieces.run(lambda: choose(decoder.head(offload.total(x, *last))))
        pieces.end()
        if unfinished is not None:
            offload.finish(unfinished)
        offload.settle()
