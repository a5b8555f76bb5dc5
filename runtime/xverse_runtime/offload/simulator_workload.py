"""What a decoded token reads."""

from __future__ import annotations

from dataclasses import dataclass

from xverse_runtime.offload.policy import Key
from xverse_runtime.prediction import Placement


@dataclass(frozen=True)
class Workload:
    """What a decoded token reads. Bytes.

    Args:
        layers, experts, top_k: of the model.
        block: one routed expert.
        before: of a layer, ahead of its experts: attention, its part of the cache, router.
        always: of a layer: experts that every token goes to.
        head: of a token.
        embedding_on_host: whether a row of it has to be copied first.
    """

    layers: int
    experts: int
    top_k: int
    block: int
    before: float
    always: int
    head: int
    embedding_on_host: bool = False

    @classmethod
    def of(cls, placement: Placement) -> Workload:
        """Of a plan, with a full context, where it is slowest."""
        sizes, config = placement.sizes, placement.sizes.config
        return cls(
            layers=config.num_layers,
            experts=config.num_experts,
            top_k=config.top_k,
            block=sizes.block,
            before=sizes.attention + sizes.router + placement.kv_bytes / config.num_layers,
            always=sizes.always,
            head=sizes.head,
            embedding_on_host=placement.embedding_device == "cpu",
        )

    @property
    def keys(self) -> list[Key]:
        return [(layer, expert) for layer in range(self.layers) for expert in range(self.experts)]
