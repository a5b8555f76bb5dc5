"""Guesses at what the next layer is going to choose, right as often as one says."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

# Powers of the share, for the first guess and the last: of the demo's guesses 69 % are right, of
# the first ones 91, of the last ones 48.
FIRST, LAST = 0.25, 2.0

DEMO = 0.69  # of the demo's guesses are right (`python -m bench.next_router`)
CAREFUL = 0.5


class SyntheticGuesses:
    """Of a layer with a number of experts; the same seed gives the same."""

    def __init__(self, experts: int, top_k: int, right: float, seed: int = 0) -> None:
        """
        Args:
            experts: of a layer.
            top_k: how many are chosen, and guessed.
            right: share of the guesses that are among the chosen ones, or a little less.
        """
        self._experts = experts
        last = max(1, top_k - 1)
        self._right = [right ** (FIRST + (LAST - FIRST) * rank / last) for rank in range(top_k)]
        self._random = Random(f"guesses {seed}")

    def of(self, chosen: Sequence[int]) -> list[int]:
        """Guesses at ``chosen``, both with the most probable first; wrong ones are any others."""
        others = [one for one in range(self._experts) if one not in chosen]
        self._random.shuffle(others)
        return [
            expert if not others or self._random.random() < right else others.pop()
            for expert, right in zip(chosen, self._right, strict=True)
        ]
