"""Launching the sampler."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from xverse_kernels.triton.launch import Launcher, padded, require_rows
from xverse_kernels.triton.sampling_kernels import candidates_kernel, draw_kernel
from xverse_kernels.types import TokenChoice

CANDIDATES = 64  # the largest top-k that is drawn on the device
BLOCK = 1024
CANDIDATES_WARPS = 1
_candidates = Launcher(candidates_kernel)
_draw = Launcher(draw_kernel)


@dataclass(frozen=True)
class SamplerState:
    """What the sampler reads and keeps for each of T sequences, in fixed buffers on the device."""

    settings: Tensor  # fp32 [T, 4]: temperature, repetition penalty, top-p, min-p
    top_k: Tensor  # int32 [T], 1 to CANDIDATES
    seeds: Tensor  # int64 [T]
    steps: Tensor  # int64 [T]
    seen: Tensor  # int8 [T, vocab]
    tokens: Tensor  # int64 [T], the result; -1 where a logit was not finite

    @classmethod
    def empty(cls, sequences: int, vocab: int, device: torch.device) -> SamplerState:
        """Greedy for all."""
        settings = torch.tensor([[0.0, 1.0, 1.0, 0.0]], device=device).repeat(sequences, 1)
        return cls(
            settings=settings,
            top_k=torch.full((sequences,), CANDIDATES, dtype=torch.int32, device=device),
            seeds=torch.zeros(sequences, dtype=torch.int64, device=device),
            steps=torch.zeros(sequences, dtype=torch.int64, device=device),
            seen=torch.zeros(sequences, vocab, dtype=torch.int8, device=device),
            tokens=torch.zeros(sequences, dtype=torch.int64, device=device),
        )


def sample(logits: Tensor, state: SamplerState, first: int = 0) -> Tensor:
    """Draw one token of each sequence into ``state.tokens``, and return them.

    Args:
        logits: fp32 [rows, vocab], of the sequences from ``first`` on.
        state: settings and buffers; ``seen`` and ``steps`` move on.
        first: sequence of the first row.
    """
    require_rows(logits)
    rows, vocab = logits.shape
    blocks = -(-vocab // BLOCK)
    keys = torch.empty(rows, blocks, CANDIDATES, dtype=torch.int64, device=logits.device)
    _candidates(
        (rows, blocks),
        (logits, state.seen, state.settings, state.top_k, keys, vocab, first),
        {"BLOCK": BLOCK, "CANDIDATES": CANDIDATES},
        warps=CANDIDATES_WARPS,
    )
    _draw(
        (rows,),
        (
            keys,
            state.settings,
            state.top_k,
            state.seeds,
            state.steps,
            state.seen,
            state.tokens,
            vocab,
            blocks,
            first,
        ),
        {"BLOCKS_PADDED": padded(blocks), "CANDIDATES": CANDIDATES},
        warps=1,
    )
    return state.tokens


class DeviceSampler:
    """See `TokenSampler`: top-k up to CANDIDATES, and greedy."""

    def __init__(self, sequences: int, vocab: int, device: torch.device) -> None:
        self._state = SamplerState.empty(sequences, vocab, device)

    @property
    def tokens(self) -> Tensor:
        return self._state.tokens

    def can_draw(self, choice: TokenChoice) -> bool:
        return choice.temperature == 0 or 1 <= choice.top_k <= CANDIDATES

    def begin(self, row: int, history: Sequence[int], choice: TokenChoice) -> None:
        if not self.can_draw(choice):
            raise ValueError(f"top-k must be 1 to {CANDIDATES} here, not {choice.top_k}")
        state, device = self._state, self._state.seen.device
        numbers = (
            choice.temperature, choice.repetition_penalty, choice.top_p, choice.min_p,
        )  # fmt: skip
        state.settings[row] = torch.tensor(numbers, device=device)
        state.top_k[row] = min(max(choice.top_k, 1), CANDIDATES)
        state.seeds[row] = choice.seed
        state.steps[row] = 0
        state.seen[row] = 0
        state.seen[row, torch.tensor(history, dtype=torch.int64, device=device)] = 1

    def __call__(self, logits: Tensor, first: int = 0) -> Tensor:
        return sample(logits, self._state, first)
