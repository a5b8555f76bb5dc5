"""Which versions of kernels a model will launch: found by running its decoder on tensors without
data, so that no list has to be kept in step with what is really launched.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from xverse_kernels.backend import KernelBackend
from xverse_kernels.packing import ExpertBlocks
from xverse_kernels.types import Parts, RoutedTokens
from xverse_runtime.config import ModelConfig
from xverse_runtime.decode_loop import BUCKETS
from xverse_runtime.kv_cache import KVCache, KVPool
from xverse_runtime.model import Decoder
from xverse_runtime.moe import ExpertRunner
from xverse_runtime.rope import RotaryTable
from xverse_runtime.weights import ModelWeights, MoeWeights

if TYPE_CHECKING:
    from xverse_kernels.triton.launch import Abilities, Place
    from xverse_kernels.triton.versions import Version

META = torch.device("meta")


@dataclass(frozen=True)
class Usage:
    """How a model will be used.

    Args:
        cache: what keys and values are kept in.
        context: the longest text, in tokens.
        chunk: the most tokens of a pass.
        most_few: where experts are offloaded, the most tokens of a pass that does not stream them.
    """

    cache: torch.dtype
    context: int
    chunk: int
    most_few: int | None = None


def kernel_versions(
    config: ModelConfig, weights: ModelWeights, usage: Usage, abilities: Abilities
) -> dict[Version, Place]:
    """All versions that prompts, decoding and sampling launch.

    Args:
        config: the model's.
        weights: in the form that kernels read, `without_data`.
        usage: of the model.
        abilities: of the device.
    """
    from xverse_kernels.triton.backend import TritonBackend
    from xverse_kernels.triton.launch import recording
    from xverse_kernels.triton.tiles import token_counts

    layers = _different(weights.layers)
    config, weights = replace(config, num_layers=len(layers)), replace(weights, layers=layers)
    slots = config.top_k + config.num_shared_experts if config.is_moe else 1
    experts = config.num_experts + config.num_shared_experts if config.is_moe else 1
    most = min(usage.chunk, usage.context)
    with recording(abilities) as found, torch.inference_mode():
        kernels = TritonBackend(META)
        runners = _runners(weights, kernels, usage.most_few)
        rotary = RotaryTable(config, usage.context, META)
        decoder = Decoder(config, weights, kernels, rotary, runners)
        pool = KVPool(config, usage.context, usage.cache, META)
        for tokens in token_counts(slots / experts, abilities.unit, most):
            decoder.forward([0] * tokens, KVCache(pool))
        place = torch.zeros(1, dtype=torch.int32, device=META)
        for longest in BUCKETS:
            longest = min(longest, usage.context)
            logits = decoder.step(place.long(), pool, place, place, longest)
        kernels.sampler(1, config.vocab_size)(logits)
    return found


def without_data(value: Any) -> Any:
    """Weights, or a part of them, on the device ``meta``: shapes and dtypes. Nothing is read."""
    return _mapped(value, lambda tensor: torch.empty_like(tensor, device=META))


def _different(layers: tuple[Any, ...]) -> tuple[Any, ...]:
    """One layer of each kind."""
    kinds: dict[tuple[Any, ...], Any] = {}
    for layer in layers:
        facts: list[Any] = []

        def note(tensor: Tensor, facts: list[Any] = facts) -> Tensor:
            facts.append((tensor.shape, tensor.dtype))
            return tensor

        _mapped(layer, note)
        kinds.setdefault(tuple(facts), layer)
    return tuple(kinds.values())


def _mapped(value: Any, change: Callable[[Tensor], Any]) -> Any:
    """The same structure with other tensors."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, ExpertBlocks):
        return value.like(change(value.blocks), change(value.table))
    if is_dataclass(value) and not isinstance(value, type):
        parts = {one.name: _mapped(getattr(value, one.name), change) for one in fields(value)}
        return replace(value, **parts)
    if isinstance(value, tuple):
        changed = [_mapped(one, change) for one in value]
        return type(value)(*changed) if hasattr(value, "_fields") else tuple(changed)
    if isinstance(value, list):
        return [_mapped(one, change) for one in value]
    return value


def _tell(kernels: KernelBackend, routed: RoutedTokens, table: Tensor, *, is_prompt: bool) -> None:
    """Launch what goes to the host and back: choices, with and without guesses, and tables."""
    told = [
        (one, torch.empty_like(one, dtype=torch.float32) if one.is_floating_point() else one)
        for one in routed
    ]
    ids = (routed.expert_ids, routed.expert_ids)
    if is_prompt:
        kernels.copy_small([ids, (routed.logits, routed.logits)])
    else:
        kernels.copy_small(told)
        kernels.copy_small([*told, ids])
    kernels.copy_small([(table, table)])


def _runners(
    weights: ModelWeights, kernels: KernelBackend, most_few: int | None
) -> list[ExpertRunner] | None:
    """What stands for `ExpertOffload`: the launches of its passes of few and of many tokens."""
    if most_few is None:
        return None

    def runner(experts: ExpertBlocks) -> ExpertRunner:
        def run(routed: RoutedTokens, x: Tensor, _between: object) -> Tensor:
            _tell(kernels, routed, experts.table, is_prompt=x.shape[0] > most_few)
            if x.shape[0] > most_few:
                return kernels.experts(routed, experts, x.float()).to(x.dtype)
            shape = (*routed.expert_ids.shape, x.shape[1])
            parts = torch.empty(shape, dtype=torch.float32, device=x.device)
            kernels.expert_parts(routed, experts, parts)
            here = [Parts(parts, experts.table)] * 2  # hits and late ones
            return kernels.add_parts(x, routed.expert_ids, here, parts)

        return run

    runners = []
    for layer in weights.layers:
        assert isinstance(layer.mlp, MoeWeights)
        assert isinstance(layer.mlp.experts, ExpertBlocks)
        runners.append(runner(layer.mlp.experts))
    return runners
