"""The true shape, and random inputs of it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from xverse_kernels.types import Rotary, RoutedTokens

HIDDEN, WIDTH, EXPERTS, SHARED, TOP_K, VOCAB = 2560, 1728, 64, 2, 6, 100534
HEADS, DIM = 32, 80
DTYPE = torch.bfloat16
L2_BYTES = 200 * 2**20  # rotate over more than any L2 cache holds


@dataclass(frozen=True)
class Shape:
    """Sizes of a model, and where its tensors are."""

    hidden: int = HIDDEN
    width: int = WIDTH
    experts: int = EXPERTS
    shared: int = SHARED
    top_k: int = TOP_K
    vocab: int = VOCAB
    heads: int = HEADS
    dim: int = DIM
    dtype: torch.dtype = DTYPE
    device: str = "cuda"
    l2_bytes: int = L2_BYTES

    @property
    def slots(self) -> int:
        return self.top_k + self.shared

    @property
    def blocks(self) -> int:
        return self.experts + self.shared

    def copies(self, size: int) -> int:
        """How many buffers of so many bytes no cache holds; at least two."""
        return max(2, -(-self.l2_bytes // size))

    def randn(self, *size: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        return torch.randn(size, device=self.device, dtype=dtype or self.dtype)


FULL = Shape()


def random_routing(tokens: int, among: int | None = None, shape: Shape = FULL) -> RoutedTokens:
    """Tokens that chose experts evenly, all of them ``among`` as many."""
    device, among = shape.device, among or shape.experts
    x = shape.randn(tokens, shape.hidden)
    some = torch.randperm(shape.experts, device=device)[:among]
    ids = some[torch.rand(tokens, among, device=device).topk(shape.top_k).indices].int()
    shared = torch.arange(shape.experts, shape.blocks, device=device, dtype=torch.int32)
    ids = torch.cat((ids, shared.expand(tokens, shape.shared)), dim=1).contiguous()
    weights = torch.rand(tokens, shape.slots, device=device).to(shape.dtype)
    return RoutedTokens(x, weights, ids, x.new_empty(0))


def random_rotary(positions: int, shape: Shape = FULL) -> Rotary:
    """Any angles, the same in both halves of a head."""
    angles = torch.rand(positions, shape.dim // 2, device=shape.device) * 6
    angles = torch.cat((angles, angles), dim=1)
    return Rotary(angles.cos(), angles.sin())
