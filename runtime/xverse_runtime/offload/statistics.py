"""What expert offload did, counted since the start."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

from xverse_runtime.offload.coordinator import Decision
from xverse_runtime.offload.policy import Key


@dataclass
class OffloadStatistics:
    """Counts are of experts that tokens went to; a token goes to ``top_k`` in each layer.

    Args:
        tokens: passes of a few tokens count each of theirs; prompts are not in these figures.
        hits: found in a slot.
        on_cpu: computed by the CPU.
        over_link: uploaded while the layer waited.
        critical_bytes: of those uploads.
        background_bytes: uploaded for later tokens.
        prefetched: uploaded for the next layer before it had chosen.
        prefetched_used: of those, chosen then and computed by the device.
        prompt_bytes: uploaded while prompts streamed through.
        choice_s: the host waited for the device to choose experts.
        cpu_s: the CPU computed experts.
        link_s: experts crossed that a layer waited for.
        coordination_s: the rest of what the host did for the layers.
        layers: passes of a layer that these times are of.
        prompt_link_s: experts crossed for prompts that streamed through.
        disk_s: of all passes, those in which experts came from the disk.
    """

    tokens: int = 0
    hits: int = 0
    on_cpu: int = 0
    over_link: int = 0
    critical_bytes: int = 0
    background_bytes: int = 0
    prefetched: int = 0
    prefetched_used: int = 0
    prompt_bytes: int = 0
    choice_s: float = 0.0
    cpu_s: float = 0.0
    link_s: float = 0.0
    coordination_s: float = 0.0
    layers: int = 0
    prompt_link_s: float = 0.0
    disk_s: float = 0.0

    @property
    def uses(self) -> int:
        return self.hits + self.on_cpu + self.over_link

    @property
    def hit_rate(self) -> float | None:
        """``None`` before the first use."""
        return self.hits / self.uses if self.uses else None

    def count(
        self,
        layer: int,
        tokens: int,
        used: Sequence[int],
        missing: Sequence[Key],
        decision: Decision,
    ) -> None:
        """A layer's uses by where they were computed; several tokens may use an expert."""
        on_cpu = {expert for _, expert in decision.split.cpu}
        absent = {expert for _, expert in missing}
        misses = sum(expert in absent for expert in used)
        by_cpu = sum(expert in on_cpu for expert in used)
        self.hits += len(used) - misses
        self.on_cpu += by_cpu
        self.over_link += misses - by_cpu
        self.layers += 1
        self.tokens += tokens if layer == 0 else 0

    def since(self, before: OffloadStatistics) -> OffloadStatistics:
        """What came after an earlier copy."""
        names = [field.name for field in fields(self)]
        return OffloadStatistics(*(getattr(self, one) - getattr(before, one) for one in names))
