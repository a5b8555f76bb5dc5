"""Keys and values of other conversations, kept in main memory for the day they are gone on with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from xverse_kernels.kv_rows import Rows
from xverse_runtime.host_memory import host_memory
from xverse_runtime.kv_cache import KVCache, common_prefix

# Fewer tokens than this are computed again sooner than copied out and in.
LEAST_TOKENS = 32
SHARE_OF_FREE_MEMORY = 4


@dataclass(frozen=True)
class _Kept:
    tokens: list[int]
    rows: list[Rows]
    nbytes: int


class KeptCaches:
    """What a cache held before another conversation took its place.

    Args:
        allowance: how many bytes may be kept, asked each time; by default a quarter of the memory
            that is free.
    """

    def __init__(self, allowance: Callable[[], int] | None = None) -> None:
        self._allowance = allowance or _free_memory
        self._kept: list[_Kept] = []  # the one last used at the end

    @property
    def nbytes(self) -> int:
        return sum(kept.nbytes for kept in self._kept)

    def prepare(self, cache: KVCache, prompt_ids: Sequence[int]) -> None:
        """Have ``cache`` hold as much of the prompt as was ever computed and is still here.

        What it holds is kept when the prompt goes another way early on: that is another
        conversation. A prompt that only ends earlier is the same one with a turn taken back.
        """
        shared = cache.common_prefix(prompt_ids)
        best = max(
            self._kept, key=lambda kept: common_prefix(kept.tokens, prompt_ids), default=None
        )
        gain = 0 if best is None else common_prefix(best.tokens, prompt_ids) - shared
        lost = cache.length - shared
        leaves = shared < len(prompt_ids) - 1  # the last token is computed in any case
        if leaves and lost >= LEAST_TOKENS and lost > cache.length // 2:
            self._keep(cache)
        if best is not None and gain >= LEAST_TOKENS:
            cache.fill(best.tokens, best.rows)

    def _keep(self, cache: KVCache) -> None:
        tokens = cache.tokens
        # An earlier state of the same conversation is part of this one.
        self._kept = [one for one in self._kept if one.tokens != tokens[: len(one.tokens)]]
        nbytes = cache.nbytes
        room = self._allowance() - nbytes
        while self._kept and self.nbytes > room:
            del self._kept[0]
        if room >= 0:
            self._kept.append(_Kept(tokens, cache.copies(), nbytes))


def _free_memory() -> int:
    memory = host_memory()
    return 0 if memory is None else memory[1] // SHARE_OF_FREE_MEMORY
