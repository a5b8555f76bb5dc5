"""Routing traces that behave like the model's, made of a handful of numbers.

The only public knowledge of how XVERSE-MoE-A4.2B routes is how often caches of different sizes and
policies hit (`hit_rates`). This generator was fitted to it. The preference of a layer's router for
an expert is a sum of

- popularity: for all texts (normal, standard deviation ``popularity``);
- subject: for this text (``subject``);
- phase: for this passage (``phase``), drawn anew after ``phase_tokens`` tokens on average;
- habit: ``habit``, if the token before went there;
- the token itself: Gumbel noise of scale 1, so that the rest are log-odds.

The ``top_k`` most preferred are chosen; the softmax of the sums are the probabilities.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import exp, log
from random import Random

from xverse_runtime.offload.trace import RoutedToken


@dataclass(frozen=True)
class RoutingModel:
    """Shape and strength of what a router goes by; the defaults are the fit."""

    layers: int = 28
    experts: int = 64
    top_k: int = 6
    popularity: float = 0.10
    subject: float = 0.49
    phase: float = 0.72
    phase_tokens: float = 38.0
    habit: float = 0.80


XVERSE_A4_2B = RoutingModel()


class SyntheticRouting:
    """Texts as one model routes them; the same seed gives the same."""

    def __init__(self, model: RoutingModel = XVERSE_A4_2B, seed: int = 0) -> None:
        self._model = model
        self._seed = seed
        random = Random(f"popularity {seed}")
        self._popularity = [
            [random.gauss(0, model.popularity) for _ in range(model.experts)]
            for _ in range(model.layers)
        ]

    def text(self, number: int, tokens: int, *, listed: int | None = None) -> Iterator[RoutedToken]:
        """One text, token by token.

        Args:
            number: which one; texts have different subjects.
            tokens: its length.
            listed: how many experts are told of, at least top_k; beyond it they are runners-up.
        """
        listed = listed or self._model.top_k
        layers = [
            _Router(self._model, popularity, Random(f"text {self._seed} {number} {layer}"))
            for layer, popularity in enumerate(self._popularity)
        ]
        for _ in range(tokens):
            rows = [router.next(listed) for router in layers]
            yield RoutedToken(
                tuple(experts for experts, _ in rows),
                tuple(probabilities for _, probabilities in rows),
            )


class _Router:
    """One layer's, in one text."""

    def __init__(self, model: RoutingModel, popularity: list[float], random: Random) -> None:
        self._model = model
        self._random = random
        self._lasting = [one + random.gauss(0, model.subject) for one in popularity]
        self._now = [one + random.gauss(0, model.phase) for one in self._lasting]
        self._before: tuple[int, ...] = ()

    def next(self, listed: int) -> tuple[tuple[int, ...], tuple[float, ...]]:
        """Experts of the next token, the most probable first, and their probabilities."""
        model, draw = self._model, self._random.random
        for expert, lasting in enumerate(self._lasting):
            if draw() * model.phase_tokens < 1:
                self._now[expert] = lasting + self._random.gauss(0, model.phase)
        sums = [now - log(-log(draw() or 0.5)) for now in self._now]
        for expert in self._before:
            sums[expert] += model.habit
        order = sorted(range(model.experts), key=sums.__getitem__, reverse=True)
        highest = sums[order[0]]
        weights = [exp(one - highest) for one in sums]
        total = sum(weights)
        self._before = tuple(order[: model.top_k])
        experts = tuple(order[:listed])
        return experts, tuple(weights[expert] / total for expert in experts)
