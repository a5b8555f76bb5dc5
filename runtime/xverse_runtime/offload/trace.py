"""Routing traces: which experts the router chose, for each token and layer."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class TraceHeader:
    """The shape of a trace.

    ``listed`` experts are told of each token and layer, the most probable first; the first
    ``top_k`` of them were chosen, the others were next.
    """

    model: str
    layers: int
    experts: int
    top_k: int
    listed: int
    probabilities: bool

    @property
    def entries(self) -> int:
        """Experts listed for a token, in all layers."""
        return self.layers * self.listed

    @property
    def token_bytes(self) -> int:
        """Bytes of a token in the file."""
        return self.entries * (3 if self.probabilities else 1)

    def is_sound(self) -> bool:
        """Whether such a trace can be."""
        return 1 <= self.top_k <= self.listed <= self.experts <= 256 and 1 <= self.layers <= 1024


@dataclass(frozen=True)
class RoutedToken:
    """Of one token, for each layer: experts, and what the router gave them if that is known."""

    experts: tuple[tuple[int, ...], ...]
    probabilities: tuple[tuple[float, ...], ...] | None = None


@dataclass(frozen=True)
class RoutedPass:
    """The tokens of one forward pass: several of a prompt, or one."""

    tokens: tuple[RoutedToken, ...]


def tokens_of(passes: Iterable[RoutedPass]) -> list[RoutedToken]:
    """All tokens, whatever pass they were computed in."""
    return [token for one in passes for token in one.tokens]
