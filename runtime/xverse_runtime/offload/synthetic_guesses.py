"""Guesses at what the next layer is going to choose, right as often as one says."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

# How the share of wrong guesses is spread over the ranks of a guess, in times of the mean: in the
# demo the first is wrong for 9 % of the tokens, the last for 52, all together for 31.
FIRST, LAST = 0.3, 1.7

DEMO = 0.69  # of the demo's guesses are right (`python -m bench.next_router`)
CAREFUL = 0.5


class SyntheticGuesses:
    """Of a layer with a number of experts; the same seed gives the same."""

    def __init__(self, experts: int, top_k: int, right: float, seed: int = 0) -> None:
        """
        Args:
            experts: of a layer.
            top_k: how many are chosen, and guessed.
            right: share of the guesses that are among the chosen ones.
        """
        self._experts = experts
        last = max(1, top_k - 1)
        wrong = ((1 - right) * (FIRST + (LAST - FIRST) * rank / last) for rank in range(top_k))
        self._wrong = [min(1.0, one) for one in wrong]
        self._random = Random(f"guesses {seed}")

    def of(self, chosen: Sequence[int]) -> list[int]:
        """Guesses at ``chosen``, both with the most probable first; wrong ones are any others."""
        others = [one for one in range(self._experts) if one not in chosen]
        self._random.shuffle(others)
        return [
            others.pop() if others and self._random.random() < wrong else expert
            for expert, wrong in zip(chosen, self._wrong, strict=True)
        ]
