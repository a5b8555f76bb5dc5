"""What operations take and give besides tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

if TYPE_CHECKING:
    from xverse_kernels.packing import PackedMatrix


class SwigluWeights(NamedTuple):
    """One expert, or one dense MLP: ``gate`` and ``up`` [I, H], ``down`` [H, I]."""

    gate: Tensor
    up: Tensor
    down: Tensor


class Projection(NamedTuple):
    """A linear layer: ``weight`` [out, in], ``bias`` [out] or none."""

    weight: Tensor | PackedMatrix
    bias: Tensor | None = None


class Norm(NamedTuple):
    """A root-mean-square norm: ``weight`` [H] and what is added to the mean square."""

    weight: Tensor
    eps: float


class Rotary(NamedTuple):
    """``cos`` and ``sin`` fp32 [positions, head_dim]; both halves of a row hold the same angles."""

    cos: Tensor
    sin: Tensor


class Routing(NamedTuple):
    """What the router chose: ``weights`` [T, k] in the activation dtype, ``expert_ids`` [T, k]
    int64 by falling probability, ``logits`` [T, E] fp32."""

    weights: Tensor
    expert_ids: Tensor
    logits: Tensor


class RoutedTokens(NamedTuple):
    """What a router gives the experts, S slots a token: the chosen experts, then the shared ones.

    ``normed`` [T, H]; ``weights`` [T, S] in the dtype of the activations, 1 for shared experts;
    ``expert_ids`` int [T, S]; ``logits`` [T, E] fp32.
    """

    normed: Tensor
    weights: Tensor
    expert_ids: Tensor
    logits: Tensor


class Parts(NamedTuple):
    """What some slots of T tokens add: ``values`` fp32 [T, S, H], meaningful for slots of experts
    that ``table`` int32 [experts] has a block for (-1: none)."""

    values: Tensor
    table: Tensor


class TokenChoice(NamedTuple):
    """How the next token is chosen; ``temperature`` 0 takes the likeliest, ``top_k`` 0 all."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    seed: int
