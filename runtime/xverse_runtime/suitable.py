"""What ``auto`` precision is, decided here for everyone who asks. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

READING_SPEED = 15.0  # tokens per second

Choice = TypeVar("Choice")


def most_suitable(
    choices: Iterable[Choice], tokens_per_s: Callable[[Choice], float]
) -> Choice | None:
    """The highest precision at reading speed, else the lowest.

    Args:
        choices: what can run, the highest precision first; taken one by one until one is found.
        tokens_per_s: how fast a choice is predicted to be.
    """
    lowest = None
    for choice in choices:
        if tokens_per_s(choice) >= READING_SPEED:
            return choice
        lowest = choice
    return lowest
