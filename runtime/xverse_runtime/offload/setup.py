"""Expert offload for a model as a plan has it: slots, staging, pinned memory, host kernels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from xverse_kernels.backend import KernelBackend, select_backend
from xverse_kernels.cpu.extension import physical_cores
from xverse_kernels.packing import ExpertBlocks
from xverse_runtime.config import ModelConfig
from xverse_runtime.host_reader import HostReader
from xverse_runtime.mapped_files import MappedFiles
from xverse_runtime.memory_ladder import slot_step
from xverse_runtime.offload.coordinator import Coordinator
from xverse_runtime.offload.costs import LinearCost
from xverse_runtime.offload.disk_watch import DiskWatch
from xverse_runtime.offload.expert_cache import ExpertCache
from xverse_runtime.offload.expert_slots import ExpertSlots
from xverse_runtime.offload.host_experts import HostExperts
from xverse_runtime.offload.machine import Machine
from xverse_runtime.offload.modes import MODES, MODES_WITH_PREFETCH, Mode, ModeChooser
from xverse_runtime.offload.offloaded_experts import ExpertOffload
from xverse_runtime.offload.patience import PATIENCE_S, CpuWatch
from xverse_runtime.offload.policy import Key, ScoreWindow
from xverse_runtime.offload.scheduler import MissScheduler
from xverse_runtime.offload.transfer import OffloadDevice
from xverse_runtime.plan_places import LEAST_TOKENS, MOST_FEW
from xverse_runtime.prediction import Placement, Prediction, predict
from xverse_runtime.types import AdjustmentCallback, LoadProgress, ProgressCallback
from xverse_runtime.weights import ModelWeights, MoeWeights

SPARE_CORES = 4  # from so many on one is left to the coordination and the driver


@dataclass(frozen=True)
class ModelPlan:
    """A placement, and the machine that it was made for."""

    placement: Placement
    machine: Machine

    def forecast(self, tokens: int) -> Prediction:
        """With a context that holds so many tokens, at most what it is planned for."""
        context = max(1, min(tokens, self.placement.context))
        return predict(replace(self.placement, context=context), self.machine)


def build_offload(
    weights: ModelWeights,
    config: ModelConfig,
    plan: ModelPlan,
    device: OffloadDevice,
    kernels: KernelBackend,
    *,
    files: MappedFiles | None = None,
    threads: int | None = None,
    in_place: bool = False,
    progress: ProgressCallback = lambda _progress: None,
    on_adjustment: AdjustmentCallback = lambda _code, _facts: None,
) -> ExpertOffload:
    """Fill slots and pinned memory.

    Args:
        weights: the routed and shared experts of every layer are blocks of the host.
        config: the model's.
        plan: how many slots, and how much to pin.
        device: where the slots are.
        kernels: of that device.
        files: what the blocks are parts of, where that is known.
        threads: of the host's kernels; ``None`` takes the cores.
        in_place: pin the blocks where they lie: they are the program's own memory.
        progress: told the bytes of experts that are in their places.
        on_adjustment: told ``offload.fewer_slots``, ``offload.less_pinned`` and, later,
            ``offload.slow_disk`` and, from another thread, ``offload.stuck_cpu``.

    Raises:
        torch.OutOfMemoryError: not even a pool without slots fits.
        IntegrityError: ``checkpoint.corrupt``: a file could not be read.
    """
    layers = [_blocks_of(layer.mlp) for layer in weights.layers]
    host = HostExperts(layers, config.num_experts)
    placement, machine = plan.placement, plan.machine
    block = host.layout.block_bytes
    cache = _cache(config, placement, device, host, weights.norm.dtype, on_adjustment)
    total = cache.resident_bytes + min(placement.pinned_experts, placement.sizes.routed)
    done = 0

    def on_loaded(nbytes: int) -> None:
        nonlocal done
        done += nbytes
        progress(LoadProgress(min(done, total), total))

    with HostReader(files) as reader:
        cache.load(_round_robin(config), on_loaded, copy=reader.copy)
        most = placement.pinned_experts
        host.pin(device, most, on_loaded, copy=reader.copy, in_place=in_place)
    progress(LoadProgress(total, total))
    wished = placement.pinned_experts // (block * config.num_experts)
    if host.pinned_layers < min(wished, config.num_layers):
        facts = {"pinned": host.pinned_layers, "layers": config.num_layers}
        on_adjustment("offload.less_pinned", facts)

    def told_stuck(layer: int, experts: Sequence[int]) -> None:
        facts = {"layer": layer, "experts": ", ".join(map(str, experts))}
        on_adjustment("offload.stuck_cpu", {**facts, "seconds": round(PATIENCE_S)})

    cpu = LinearCost(machine.copy_latency, machine.cpu_expert_bandwidth)
    link = LinearCost(machine.copy_latency, machine.link_to_gpu)
    rules = Coordinator(
        cache.slots,
        MissScheduler(block, cpu, link, contention=machine.contention),
        is_pinned=lambda key: host.is_pinned(key[0]),
        most_now=cache.staged,
    )
    return ExpertOffload(
        cache,
        rules,
        kernels,
        host_kernels(threads),
        top_k=config.top_k,
        most_few=most_few(placement, machine),
        modes=ModeChooser(_modes(cache)),
        watch=CpuWatch(told_stuck),
        disk=DiskWatch(lambda: on_adjustment("offload.slow_disk", {})),
    )


def host_kernels(threads: int | None) -> KernelBackend:
    """What computes misses: the C kernels, or plain torch where they are missing."""
    kernels = select_backend("auto", torch.device("cpu"))
    set_threads = getattr(kernels, "set_threads", None)
    if set_threads is not None:
        cores = physical_cores()
        set_threads(threads or (cores - 1 if cores >= SPARE_CORES else cores))
    return kernels


def most_few(placement: Placement, machine: Machine) -> int:
    """The most tokens of a pass whose misses the CPU computes sooner than their layers cross.

    T tokens touch a share 1 - (1 - k / E)^T of the experts that are not on the device. Decided
    once, by the machine's figures: what a pass gives must not depend on how busy the machine is.
    """
    sizes = placement.sizes
    config = sizes.config
    absent = 1 - placement.slots_per_layer / config.num_experts
    all_bytes = absent * config.num_experts * sizes.block
    streaming = all_bytes / machine.link_to_gpu
    expert_flops = 2 * 3 * config.hidden_size * config.intermediate_size
    best = 1
    for tokens in range(2, MOST_FEW + 1):
        touched = 1 - (1 - config.top_k / config.num_experts) ** tokens
        reading = touched * all_bytes / machine.cpu_expert_bandwidth
        computing = tokens * config.top_k * absent * expert_flops / machine.cpu_flops
        if max(reading, computing) > streaming:
            break
        best = tokens
    return best


def _cache(
    config: ModelConfig,
    placement: Placement,
    device: OffloadDevice,
    host: HostExperts,
    dtype: torch.dtype,
    on_adjustment: AdjustmentCallback,
) -> ExpertCache:
    """With the slots of the plan, or fewer if another program took the memory meanwhile."""
    slots = wished = placement.expert_slots
    policy = ScoreWindow.for_model(config.num_layers, config.top_k)
    staged = min(config.num_experts, placement.staging // 2 // host.layout.block_bytes)
    while True:
        if slots < placement.sizes.routed_blocks:
            staged = max(1, staged)
        try:
            # What prompts and steps need stays free, also where less is left than was planned.
            held = device.empty(placement.workspace + placement.steps, dtype=torch.uint8)
            cache = ExpertCache(
                device,
                host,
                ExpertSlots(config.num_layers, config.num_experts, slots, policy),
                staged=staged,
                shared=config.num_shared_experts,
                dtype=dtype,
                beside=placement.sizes.workspace(min(placement.prefill_chunk, LEAST_TOKENS))
                + placement.sizes.steps(),  # captured anew
            )
        except torch.OutOfMemoryError:
            if slots == 0:
                raise
            slots = max(0, slots - slot_step(wished))
            continue
        del held
        if slots < wished:
            on_adjustment("offload.fewer_slots", {"slots": slots, "wished": wished})
        return cache


def _modes(cache: ExpertCache) -> tuple[Mode, ...]:
    """The ways that there are to choose from."""
    if not cache.host.pinned_layers:
        return ("scheduled",)
    return MODES_WITH_PREFETCH if cache.can_prefetch else MODES


def _round_robin(config: ModelConfig) -> Iterator[Key]:
    """All experts, an equal number of each layer in whatever is taken from the front."""
    for expert in range(config.num_experts):
        for layer in range(config.num_layers):
            yield layer, expert


def _blocks_of(mlp: object) -> ExpertBlocks:
    assert isinstance(mlp, MoeWeights)
    assert isinstance(mlp.experts, ExpertBlocks)
    return mlp.experts
