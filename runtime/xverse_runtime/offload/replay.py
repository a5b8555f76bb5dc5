"""Runs a routing trace through expert slots and counts hits; takes no time into account."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from xverse_runtime.offload.expert_slots import ExpertSlots
from xverse_runtime.offload.policy import Key
from xverse_runtime.offload.trace import RoutedToken


class HitCount(NamedTuple):
    """Uses of experts, and how many found theirs resident."""

    uses: int
    hits: int

    @property
    def rate(self) -> float:
        return self.hits / self.uses if self.uses else 0.0


def chosen_keys(tokens: Iterable[RoutedToken], top_k: int) -> Iterator[Key]:
    """The experts that tokens go to, in the order of the computation."""
    for token in tokens:
        for layer, experts in enumerate(token.experts):
            for expert in experts[:top_k]:
                yield layer, expert


def replay(tokens: Iterable[RoutedToken], slots: ExpertSlots, top_k: int) -> HitCount:
    """As the runtime works: layer by layer, every miss uploaded before the next layer begins.

    Changes ``slots``; call it again to go on, for instance after a part that is not to count.
    """
    uses = misses = 0
    for token in tokens:
        for layer, experts in enumerate(token.experts):
            slots.enter_layer()
            chosen = experts[:top_k]
            probabilities = token.probabilities[layer] if token.probabilities else None
            missing = slots.use(layer, chosen, probabilities)
            for place in range(top_k, len(experts)):
                probability = probabilities[place] if probabilities else 0.0
                slots.policy.on_use((layer, experts[place]), probability, chosen=False)
            for key in missing:
                if slots.reserve(key) is not None:
                    slots.commit(key)
            uses += len(chosen)
            misses += len(missing)
    return HitCount(uses, uses - misses)


def replay_by_token(tokens: Sequence[RoutedToken], slots: ExpertSlots, top_k: int) -> HitCount:
    """As the published curves were counted (`hit_rates`): all layers of a token are judged by what
    was resident before it, and an expert that comes into a free slot counts as a hit."""
    uses = hits = 0
    for token in tokens:
        free = slots.slots - sum(slots.held(layer) for layer in range(len(token.experts)))
        keys = list(chosen_keys((token,), top_k))
        missing = sum(slots.table(layer)[expert] < 0 for layer, expert in keys)
        uses += len(keys)
        hits += len(keys) - missing + min(missing, free)
        for layer, expert in keys:
            slots.enter_layer()
            for key in slots.use(layer, (expert,)):
                if slots.reserve(key) is not None:
                    slots.commit(key)
    return HitCount(uses, hits)
