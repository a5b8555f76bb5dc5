"""Routing as the calibrated generator has it, in a model of random weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from xverse_kernels.backend import KernelBackend
from xverse_kernels.types import Norm, RoutedTokens
from xverse_runtime.config import ModelConfig
from xverse_runtime.offload.offloaded_experts import RUNNERS_UP
from xverse_runtime.offload.synthetic_guesses import SyntheticGuesses
from xverse_runtime.offload.synthetic_routing import SyntheticRouting
from xverse_runtime.offload.trace import RoutedToken

UNLISTED = -30.0  # logit of an expert that the trace does not name


class TracedKernels:
    """Kernels whose router computes, and then says what a trace says, for passes of one token.

    Random weights send tokens to experts evenly and anew each time; no cache is of use then.
    """

    def __init__(self, kernels: KernelBackend, config: ModelConfig, device: torch.device) -> None:
        slots = config.top_k + config.num_shared_experts
        self._kernels = kernels
        self._layers = config.num_layers
        self._top_k = config.top_k
        self._next = 0  # call of the router in a pass of one token
        self._guesses: SyntheticGuesses | None = None
        self._host_ids = torch.zeros(config.num_layers, 1, slots, dtype=torch.int32)
        self._host_ids[:, :, config.top_k :] = torch.arange(
            config.num_experts, config.num_experts + config.num_shared_experts
        )
        self._host_logits = torch.empty(config.num_layers, 1, config.num_experts)
        self._ids = self._host_ids.to(device)
        self._guessed_ids = self._host_ids.to(device)
        self._logits = self._host_logits.to(device)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._kernels, name)

    def guess(self, right: float) -> None:
        """From now on each layer is followed by a guess at the next, of which so many are right."""
        self._guesses = SyntheticGuesses(self._host_logits.shape[-1], self._top_k, right)

    def follow(self, token: RoutedToken) -> None:
        """What the next pass of one token chooses."""
        self._host_logits.fill_(UNLISTED)
        for layer, experts in enumerate(token.experts):
            self._host_ids[layer, 0, : self._top_k] = torch.tensor(experts[: self._top_k])
            assert token.probabilities is not None
            likely = torch.tensor(token.probabilities[layer])
            self._host_logits[layer, 0, list(experts)] = likely.clamp(min=1e-9).log()
        self._ids.copy_(self._host_ids)
        self._logits.copy_(self._host_logits)
        if self._guesses is not None:
            guessed = self._host_ids.clone()
            for layer, experts in enumerate(token.experts):
                guesses = self._guesses.of(experts[: self._top_k])
                guessed[layer, 0, : self._top_k] = torch.tensor(guesses)
            self._guessed_ids.copy_(guessed)

    def route(self, x: Tensor, norm: Norm, router: Tensor, top_k: int, shared: int) -> RoutedTokens:
        routed = self._kernels.route(x, norm, router, top_k, shared)
        if x.shape[0] > 1:
            return routed
        number = self._next
        if self._guesses is None:
            layer, self._next = number, (number + 1) % self._layers
        else:  # of a layer, then the guess at the one after it
            layer, self._next = (number + 1) // 2, (number + 1) % (2 * self._layers - 1)
            if number % 2:
                ids = self._guessed_ids[layer]
                return routed._replace(expert_ids=ids.to(routed.expert_ids.dtype))
        ids, logits = self._ids[layer], self._logits[layer]
        return routed._replace(expert_ids=ids.to(routed.expert_ids.dtype), logits=logits.clone())


def synthetic_tokens(config: ModelConfig, count: int, seed: int = 0) -> Iterator[RoutedToken]:
    """One text's routing, of as many layers; at most the 28 of A4.2B."""
    listed = config.top_k + RUNNERS_UP
    for token in SyntheticRouting(seed=seed).text(0, count, listed=listed):
        assert token.probabilities is not None
        layers = config.num_layers
        yield RoutedToken(token.experts[:layers], token.probabilities[:layers])
