"""Which files of a store can be made from which weight files, and what that takes on the disk."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from xverse_runtime.store.layout import StoreFile, StoreLayout
from xverse_runtime.store.shard import shard_bytes


@dataclass(frozen=True)
class Arrivals:
    """Weight files that come one after the other, and the store files that are made of them.

    ``order`` are the weight files in the order they come; ``made_from`` and ``sizes`` tell, for
    each store file in the order of writing, its weight files and its bytes.
    """

    order: tuple[str, ...]
    made_from: Mapping[str, frozenset[str]]
    sizes: Mapping[str, int]

    @classmethod
    def of(
        cls,
        layout: StoreLayout,
        files: Collection[StoreFile],
        planned: Mapping[str, str],
        order: Collection[str],
    ) -> Arrivals:
        """``planned`` is what `checkpoint.planned_weights` returns."""
        made_from = {
            file.name: frozenset(planned[name] for name in layout.published(file)) for file in files
        }
        return cls(tuple(order), made_from, {file.name: shard_bytes(file.specs) for file in files})

    def needed(self, done: Collection[str]) -> list[str]:
        """Weight files, in order, that hold something of a store file that is not ``done``."""
        needed: set[str] = set()
        for name, weights in self.made_from.items():
            if name not in done:
                needed |= weights
        return [name for name in self.order if name in needed]

    def ready(self, done: Collection[str], present: Collection[str]) -> list[str]:
        """Store files that are not ``done`` and can be made of the weight files ``present``."""
        there = frozenset(present)
        return [
            name
            for name, weights in self.made_from.items()
            if name not in done and weights <= there
        ]

    def moments(
        self, done: Collection[str], present: Collection[str], sizes: Mapping[str, int]
    ) -> Iterator[tuple[int, int]]:
        """What lies on the disk from now on, moment by moment, when each weight file is used as
        soon as it has come and removed as soon as nothing needs it.

        Args:
            done: store files that are written.
            present: weight files that are there.
            sizes: bytes of the weight files that are needed.

        Yields:
            Bytes of store files and bytes of weight files beyond those that are there now.
        """
        written, there = set(done), set(present)
        needed = self.needed(done)
        store = weights = 0
        for coming in (None, *(name for name in needed if name not in there)):
            if coming is not None:
                there.add(coming)
                weights += sizes[coming]
            for name in self.ready(written, there):
                written.add(name)
                store += self.sizes[name]
            yield store, weights
            free = (there & set(needed)) - set(self.needed(written))
            there -= free
            weights -= sum(sizes[name] for name in free)
