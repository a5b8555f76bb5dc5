"""What is given up, and in which order, when a GPU's memory runs out in the middle of work.

Smaller pieces of a prompt come first, and are `Prefill`'s business. Then, here: a smaller context;
keys and values in int8; fewer experts on the GPU. A rung only gives memory back and says what to
come back with: the memory is taken anew before the work is tried again, and if that does not fit
either, the next rung is reached with the old memory already free.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch

from xverse_runtime.config import CONTEXT_STEP, SMALLEST_CONTEXT
from xverse_runtime.kv_cache import KVPool
from xverse_runtime.types import AdjustmentCallback

T = TypeVar("T")

# What torch from 2.8 on raises where a device is at fault, and not the room for something.
FAULTS: tuple[type[Exception], ...] = tuple(
    one for one in [getattr(torch, "AcceleratorError", None)] if one is not None
)


class Experts(Protocol):
    """Experts of which the GPU may hold fewer."""

    @property
    def are_here(self) -> bool:
        """Whether they have their memory."""

    @property
    def slots(self) -> int:
        """How many it holds."""

    @property
    def planned_slots(self) -> int:
        """How many it was to hold."""

    def leave(self, slots: int) -> None:
        """Give all memory back, and say how many to come back with."""

    def come_back(self) -> None:
        """Raises torch.OutOfMemoryError: there is not that much; nothing was taken."""


class Steps(Protocol):
    """Something captured, which knows where keys, values and experts lie."""

    @property
    def reached(self) -> int:
        """Places of a sequence that may have been written and not yet counted as cached."""

    def reset(self) -> None:
        """They moved."""


@dataclass(frozen=True)
class _Held:
    pool: KVPool
    rows: Callable[[], int]  # tokens of a sequence that are cached
    shrinks: bool


class MemoryLadder:
    """The ways out that one engine has. Also without a GPU: then nothing ever asks for them."""

    def __init__(
        self,
        on_adjustment: AdjustmentCallback = lambda _code, _facts: None,
        *,
        shrinks: bool = True,
        rounds: bool = True,
        release: Callable[[], None] = torch.cuda.empty_cache,
    ) -> None:
        """
        Args:
            on_adjustment: told ``memory.smaller_context``, ``memory.int8_cache`` and
                ``offload.fewer_slots``.
            shrinks: whether the context may become smaller: one that was asked for stays.
            rounds: whether keys and values may be rounded to int8: not where another format, or
                exact maths, was asked for.
            release: lets other programs, and larger pieces, have what was given back.
        """
        self._on_adjustment = on_adjustment
        self._shrinks = shrinks
        self._rounds = rounds
        self._release = release
        self._held: list[_Held] = []
        self._experts: Experts | None = None
        self._steps: list[Steps] = []
        self._untold: list[tuple[str, dict[str, object]]] = []
        self.needed = 0  # tokens that the reply under way may still come to have, with its prompt

    def hold(self, pool: KVPool, rows: Callable[[], int]) -> None:
        """The engine's own cache: all of the ladder is for it. ``rows``: how many are cached."""
        self._held.append(_Held(pool, rows, shrinks=self._shrinks))

    def hold_experts(self, experts: Experts) -> None:
        self._experts = experts

    def hold_steps(self, steps: Steps) -> None:
        """Told whenever something moved."""
        self._steps.append(steps)

    @contextmanager
    def holding(self, pool: KVPool, steps: Steps) -> Iterator[None]:
        """A pool of several sequences, as large as their replies may become: it never shrinks."""
        held = _Held(pool, lambda: pool.capacity, shrinks=False)
        self._held.append(held)
        self._steps.append(steps)
        try:
            yield
        finally:
            self._held.remove(held)
            self._steps.remove(steps)

    def attempt(self, work: Callable[[], T]) -> T:
        """``work``, again and again with less memory for other things until it fits.

        Raises:
            torch.OutOfMemoryError: nothing is left to give up.
        """
        while True:
            try:
                self.restore()
                result = work()
            except torch.OutOfMemoryError as error:
                reason = str(error)
            else:
                self._tell()
                return result
            # Here and not above: the error holds the frames that hold what was computed so far.
            if not self.give_up():
                raise torch.OutOfMemoryError(reason)

    def restore(self) -> None:
        """Have everything here that was given up for something smaller.

        Raises:
            torch.OutOfMemoryError: it does not fit; `give_up` may help.
        """
        for held in self._held:
            if not held.pool.is_here:
                held.pool.come_back()
        if self._experts is not None and not self._experts.are_here:
            self._experts.come_back()

    def give_up(self) -> bool:
        """The next rung; false where there is none left. What was done is told when it helped."""
        done = self._smaller_context() or self._int8_cache() or self._fewer_slots()
        if done:
            self.moved()
        return done

    def moved(self) -> None:
        """Something is not where it was: captured steps are forgotten, with their memory."""
        for steps in self._steps:
            steps.reset()
        self._release()

    def _tell(self) -> None:
        untold, self._untold = self._untold, []
        for code, facts in untold:
            self._on_adjustment(code, facts)

    def _smaller_context(self) -> bool:
        for held in self._held:
            pool = held.pool
            # The angles stay those of the first context: they are in the keys that are kept.
            least = max(SMALLEST_CONTEXT, self.needed, held.rows())
            wanted = max(least, pool.capacity // 2)
            smaller = -(-wanted // CONTEXT_STEP) * CONTEXT_STEP
            if not held.shrinks or smaller >= pool.capacity:
                continue
            facts: dict[str, object] = {"wished": pool.capacity, "context_length": smaller}
            if self._leave(held, capacity=smaller):
                self._untold.append(("memory.smaller_context", facts))
                return True
        return False

    def _int8_cache(self) -> bool:
        changed = False
        for held in self._held if self._rounds else ():
            if held.pool.dtype != torch.int8:
                changed |= self._leave(held, dtype=torch.int8)
        if changed:
            self._untold.append(("memory.int8_cache", {}))
        return changed

    def _leave(
        self, held: _Held, *, capacity: int | None = None, dtype: torch.dtype | None = None
    ) -> bool:
        try:
            reached = [steps.reached for steps in self._steps]
            held.pool.leave(max(held.rows(), *reached, 0), capacity=capacity, dtype=dtype)
        except FAULTS:  # of the GPU: nothing helps
            raise
        except RuntimeError:  # the host has no room for what is to be kept: another rung may do
            return False
        return True

    def _fewer_slots(self) -> bool:
        experts = self._experts
        if experts is None or experts.slots == 0:
            return False
        wished = experts.planned_slots
        slots = max(0, experts.slots - slot_step(wished))
        experts.leave(slots)
        self._untold = [one for one in self._untold if one[0] != "offload.fewer_slots"]
        self._untold.append(("offload.fewer_slots", {"slots": slots, "wished": wished}))
        return True


def slot_step(planned: int) -> int:
    """How many slots are given up at a time: few reloads, and little given up in vain."""
    return max(1, planned // 16)
