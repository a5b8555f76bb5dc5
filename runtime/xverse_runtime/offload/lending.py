"""Experts that make room for a while: for the caches of several replies at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch

from xverse_runtime.memory_ladder import MemoryLadder
from xverse_runtime.offload.offloaded_experts import ExpertOffload
from xverse_runtime.types import AdjustmentCallback

MOST_LENT = 2  # one in so many slots: with fewer of them every reply would be slow


@contextmanager
def lent_slots(
    offload: ExpertOffload,
    nbytes: int,
    beside: int,
    on_adjustment: AdjustmentCallback,
    ladder: MemoryLadder,
) -> Iterator[None]:
    """Slots that take the place of ``nbytes`` leave, as far as that is needed; and come back.

    Args:
        offload: holds nothing on its way.
        nbytes: what is wished for.
        beside: what must be free beside that.
        on_adjustment: told ``offload.lent_slots``.
        ladder: holds the same experts; sees to it that they have their memory again.
    """
    cache, before = offload.cache, offload.slots
    missing = max(0, nbytes + beside - cache.device.free_bytes())
    blocks = -(-missing // cache.host.layout.block_bytes)
    staging = 2 * (cache.staged_with(before - 1) - cache.staged)  # which a full GPU did not need
    lent = min(blocks + staging, before // MOST_LENT)
    if blocks == 0 or lent <= staging:
        yield
        return
    try:
        offload.leave(before - lent)
        ladder.moved()
        ladder.attempt(lambda: None)
        on_adjustment("offload.lent_slots", {"slots": before - lent, "wished": before})
        yield
    finally:
        # Those that were given up for good meanwhile stay away.
        slots = offload.slots
        wanted = min(before, slots + lent)
        try:
            _take_back(offload, wanted, ladder)
        except torch.OutOfMemoryError:  # not the ladder: what it gives up is worth more
            with suppress(torch.OutOfMemoryError):  # then whoever comes next tries again
                _take_back(offload, slots, ladder)
        except KeyboardInterrupt:  # then whoever comes next loads them
            offload.leave(wanted)
            ladder.moved()
            raise


def _take_back(offload: ExpertOffload, slots: int, ladder: MemoryLadder) -> None:
    offload.leave(slots)
    ladder.moved()
    offload.come_back()
