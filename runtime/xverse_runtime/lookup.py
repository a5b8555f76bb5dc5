"""Prompt lookup: tokens that are likely to come next because they did so before.

A forward pass over the newest token and some proposals costs less than one pass for each of them,
and proposals that turn out right are tokens of the reply. Only ids and seconds here: no torch, no
clock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from itertools import cycle, islice
from typing import NamedTuple

from xverse_runtime.lookup_policy import LONGEST, LookupPolicy
from xverse_runtime.types import Pass

SIZES = (16, 8, 4, 2, 1)  # how many of the newest tokens are looked for, the more the better
MOST = 15  # proposals in one pass


class Match(NamedTuple):
    """An earlier occurrence of the newest tokens: where it goes on, and how long it is."""

    place: int
    length: int


class NgramIndex:
    """Token ids, and where their n-grams occurred last."""

    def __init__(self, ids: Iterable[int]) -> None:
        self._ids: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}
        for token in ids:
            self.append(token)

    def append(self, token: int) -> None:
        """One more token: what the tokens before it are followed by is known now."""
        place = len(self._ids)
        for size in SIZES:
            if size <= place:
                self._after[tuple(self._ids[place - size :])] = place
        self._ids.append(token)

    def match(self) -> Match | None:
        """The most recent earlier occurrence of as many of the newest tokens as `SIZES` has."""
        for size in SIZES:
            place = self._after.get(tuple(self._ids[-size:]))
            if place is not None:
                return Match(place, self._common(place))
        return None

    def continuation(self, place: int, count: int) -> list[int]:
        """``count`` tokens from ``place`` on; at the end they begin again, as a period does."""
        return list(islice(cycle(self._ids[place : place + count]), count))

    def _common(self, place: int) -> int:
        """How many tokens before ``place`` are also the newest ones."""
        ids, length = self._ids, 0
        while length < min(place, LONGEST) and ids[place - 1 - length] == ids[-1 - length]:
            length += 1
        return length


class Lookup:
    """The proposals for one reply: ask before each pass, tell its time, and tell each token."""

    def __init__(
        self, prompt_ids: Sequence[int], limit: int, policy: LookupPolicy | None = None
    ) -> None:
        """At most ``limit`` tokens follow."""
        self._index = NgramIndex(prompt_ids)
        self._match = self._index.match()
        self._policy = policy or LookupPolicy()
        self._left = limit
        self._ahead: deque[int] = deque()
        self.passes: list[Pass] = []

    def propose(self) -> list[int]:
        """Tokens to compute together with the newest; none where that does not pay."""
        self._ahead.clear()
        if self._match is not None:
            # The last token of a reply is never computed.
            most = min(MOST, self._left - 1)
            count = self._policy.count(self._match.length, most)
            self._ahead.extend(self._index.continuation(self._match.place, count))
        return list(self._ahead)

    def passed(self, seconds: float) -> None:
        """How long the pass took over the newest token and what was proposed."""
        self.passes.append(Pass(len(self._ahead), 0))
        self._policy.timed(len(self._ahead), seconds)

    def chosen(self, token: int) -> bool:
        """Tell the next token; whether it was proposed, so that it has been computed."""
        if self._match is not None:
            place, length = self._match
            self._policy.predicted(length, self._index.continuation(place, 1) == [token])
        self._index.append(token)
        self._match = self._index.match()
        self._left -= 1
        if not self._ahead or self._ahead.popleft() != token:
            self._ahead.clear()
            return False
        proposed, accepted = self.passes[-1]
        self.passes[-1] = Pass(proposed, accepted + 1)
        return True


def replay(
    prompt_ids: Sequence[int],
    reply_ids: Sequence[int],
    seconds: Callable[[int], float],
    policy: LookupPolicy | None = None,
) -> list[Pass]:
    """The passes that a reply would take where one over so many tokens takes so many ``seconds``:
    the text does not depend on how it is computed, so any recorded one will do."""
    lookup = Lookup(prompt_ids, len(reply_ids), policy)
    computed = True  # the prompt's last logits choose the first token
    for token in reply_ids:
        if not computed:
            lookup.passed(seconds(1 + len(lookup.propose())))
        computed = lookup.chosen(token)
    return lookup.passes
