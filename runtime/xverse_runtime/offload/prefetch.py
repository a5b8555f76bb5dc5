"""The expert that a layer is expected to choose and the device lacks, sent ahead of its choice.

Bookkeeping without bytes, shared by runtime and simulator. At most one for each layer, one under
way at a time, to a place of its own: nobody is thrown out for a guess.
"""

from __future__ import annotations

from xverse_runtime.offload.policy import Key

# Layers take turns. Of the third before, nothing can be under way any more: the host waits for a
# layer's choice behind everything that the layer before the last asked for.
PLACES = 3

# One more router in each layer takes a percent of a token: too much where little is missed.
MOST_RESIDENT = 0.75


class Prefetch:
    """Guesses for layers that are still to come, and what became of them."""

    def __init__(self) -> None:
        self._guessed: dict[int, Key] = {}  # of layers that are not over
        self._wanted: Key | None = None  # of these, the one worth a copy that has not begun
        self._under_way: Key | None = None
        self._is_late = False  # what is under way was for a layer that is over
        self._there: set[Key] = set()

    def expect(self, key: Key | None, *, send: bool) -> None:
        """The next layer is most likely to choose this one, of those that it lacks, if it lacks
        any; ``send``: whether it is worth a copy. What was wanted before comes too late now."""
        if key is not None:
            self._guessed[key[0]] = key
        self._wanted = key if send else None

    def guessed(self, layer: int) -> Key | None:
        """What a layer was expected to choose, whether it was sent or not."""
        return self._guessed.get(layer)

    @property
    def is_wanted(self) -> bool:
        """Whether something waits for an idle link."""
        return self._wanted is not None

    def begin(self) -> Key | None:
        """What to send now that the link is idle; it goes to its layer's place."""
        if self._under_way is not None:
            return None
        self._under_way, self._wanted, self._is_late = self._wanted, None, False
        return self._under_way

    def arrived(self) -> None:
        """What was under way is there. It is of no use if its layer is over."""
        key, self._under_way = self._under_way, None
        assert key is not None
        if not self._is_late:
            self._there.add(key)

    def abandoned(self) -> None:
        """What was to be under way will not come."""
        self._under_way = None

    @property
    def coming(self) -> Key | None:
        """What is under way, if its layer is not over."""
        return None if self._is_late else self._under_way

    def is_there(self, key: Key) -> bool:
        """Whether it has come, and its layer is not over."""
        return key in self._there

    def there(self, layer: int) -> int | None:
        """The expert of a layer that has come."""
        key = self._guessed.get(layer)
        return key[1] if key is not None and key in self._there else None

    def leave(self, layer: int) -> None:
        """The layer is over: its place is free."""
        key = self._guessed.pop(layer, None)
        if key is not None:
            self._there.discard(key)
            if self._wanted == key:
                self._wanted = None
            if self._under_way == key:
                self._is_late = True

    def forget(self) -> None:
        """A new pass begins, whatever became of the one before."""
        self._guessed.clear()
        self._there.clear()
        self._wanted = None
        self._is_late = True  # another pass may write to its place, also if it is guessed again


def place_of(layer: int) -> int:
    """Where a layer's prefetched expert goes, of `PLACES`."""
    return layer % PLACES


def is_worth_guessing(slots: int, experts: int) -> bool:
    """Whether enough of all experts lack a slot."""
    return slots < MOST_RESIDENT * experts
