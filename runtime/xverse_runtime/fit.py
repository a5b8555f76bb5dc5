"""What a model gets on this machine: device, kernels and a context that fits beside its weights."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace

import torch

from xverse_kernels.backend import (
    BackendUnavailableError,
    KernelBackend,
    select_backend,
    why_not_triton,
)
from xverse_kernels.cpu.backend import CpuBackend
from xverse_kernels.cpu.extension import why_missing
from xverse_kernels.packing import ROWS
from xverse_runtime.config import (
    CONTEXT_STEP,
    SMALLEST_CONTEXT,
    EngineConfig,
    ModelConfig,
)
from xverse_runtime.device import GPU_WORKSPACE_BYTES, free_gpu_bytes, select_device
from xverse_runtime.errors import DeviceError, XverseError
from xverse_runtime.kv_cache import KVPool, cache_dtype
from xverse_runtime.loading import weight_bytes
from xverse_runtime.memory_plan import Wishes, plan_memory
from xverse_runtime.model_dir import ModelDirectory
from xverse_runtime.offload.machine import GIB
from xverse_runtime.offload.measure import measure_machine
from xverse_runtime.offload.setup import ModelPlan
from xverse_runtime.store.manifest import Manifest, is_store


@dataclass(frozen=True)
class Fit:
    """Where a model is computed, why there, with which context, and the plan if one was made.

    ``divided``: between GPU and host as the plan says, since it does not fit on the GPU whole.
    ``rounds``: keys and values are in int8, since it does not fit otherwise.
    ``wasted``: why the kernels of a GPU that could run them do not: something can be installed.
    """

    device: torch.device
    reason: str
    context_length: int
    plan: ModelPlan | None = None
    divided: bool = False
    rounds: bool = False
    wasted: str | None = None

    @property
    def offload(self) -> ModelPlan | None:
        """The plan, where the GPU does not hold everything."""
        return self.plan if self.divided else None

    def kv(self, config: EngineConfig) -> str:
        """What keys and values are kept in: as wished, or int8 where it is needed."""
        planned = self.plan is not None and self.plan.placement.kv == "int8"
        return "int8" if planned or self.rounds else config.kv


def fit_model(
    directory: ModelDirectory, model: ModelConfig, config: EngineConfig, wished: int
) -> Fit:
    """`find_place`, with a plan to compare with if one is wished for."""
    fit = find_place(directory, model, config, wished)
    if not (config.forecast and fit.plan is None and is_store(directory)):
        return fit
    wishes = _wishes(Manifest.read(directory), config)
    kept = fit.kv(config)
    kv = "bf16" if kept == "auto" else kept  # the forecast is of what runs
    wishes = replace(wishes, device=fit.device.type, context=fit.context_length, kv=kv)
    machine = measure_machine(fit.device)
    with suppress(XverseError):  # it runs nevertheless
        placement = plan_memory(model, machine, wishes).placement
        if not placement.offloads:
            return replace(fit, plan=ModelPlan(placement, machine))
    return fit


def find_place(
    directory: ModelDirectory, model: ModelConfig, config: EngineConfig, wished: int
) -> Fit:
    """Find the place for a model: whole on a GPU, else with some of its experts there, else on
    the CPU. An explicit wish for a device is met or refused.

    Args:
        directory: where it is.
        model: its configuration.
        config: what was asked for.
        wished: context, in tokens.

    Raises:
        UsageError: ``device.unknown``.
        DeviceError: ``device.unavailable``.
        ResourceError: ``plan.impossible`` or ``plan.no_room``, for a GPU that was asked for.
    """
    device, reason = select_device(config.device)
    if device.type == "cpu":
        return Fit(device, reason, wished)
    unpacked = why_not_triton(device) or _why_not_blocks(config, model)
    if config.device == "auto" and is_store(directory) and unpacked is not None:
        reason = f"packed weights need the Triton kernels on a GPU: {unpacked}"
        return Fit(torch.device("cpu"), reason, wished, wasted=why_wasted(config, device))
    least = wished if config.context_length else min(wished, SMALLEST_CONTEXT)
    needed = _needed_bytes(directory, model, config, least)
    free = _usable_gpu_bytes(device, config)
    if needed <= free:
        return Fit(device, reason, fitting_context(directory, model, config, wished, device))
    rounded = replace(config, kv="int8")
    if may_round(config) and _needed_bytes(directory, model, rounded, least) <= free:
        context = fitting_context(directory, model, rounded, wished, device)
        return Fit(device, reason, context, rounds=True)
    sizes = f"the model needs {needed / GIB:.1f} GiB, the GPU has {free / GIB:.1f} GiB free"
    if is_store(directory) and model.is_moe and unpacked is None:
        plan = plan_offload(model, Manifest.read(directory), config, device)
        placement = plan.placement
        if placement.device == "cuda":
            slots = f"{placement.slots_per_layer:.1f} of {model.num_experts} experts a layer there"
            return Fit(device, f"{sizes}: {slots}", placement.context, plan, divided=True)
        sizes += ", and the CPU alone is faster"
    if config.device == "auto":
        return Fit(torch.device("cpu"), sizes, wished)
    return Fit(device, reason, fitting_context(directory, model, config, wished, device))


def why_wasted(config: EngineConfig, device: torch.device) -> str | None:
    """What to install, where a GPU that Triton knows is left to slower kernels without a wish."""
    if device.type != "cuda" or config.backend != "auto":
        return None
    reason = why_not_triton(device)
    if reason is None or torch.version.hip is not None:
        return reason
    return reason if torch.cuda.get_device_capability(device) >= (7, 5) else None


def plan_offload(
    model: ModelConfig, manifest: Manifest, config: EngineConfig, device: torch.device
) -> ModelPlan:
    """What the memory plan makes of a store on this machine, which is measured for it.

    Raises:
        ResourceError: ``plan.impossible`` or ``plan.no_room``.
    """
    machine = measure_machine(device)
    plan = plan_memory(model, machine, _wishes(manifest, config))
    return ModelPlan(plan.placement, machine)


def _wishes(manifest: Manifest, config: EngineConfig) -> Wishes:
    return Wishes(
        device=config.device,
        precision=manifest.precision.experts,
        context=config.context_length,
        kv=config.kv,
        gpu_memory=config.gpu_memory,
        cpu_memory=config.cpu_memory,
    )


def _usable_gpu_bytes(device: torch.device, config: EngineConfig) -> int:
    free = free_gpu_bytes(device)
    return free if config.gpu_memory is None else min(free, config.gpu_memory)


def fitting_context(
    directory: ModelDirectory,
    model: ModelConfig,
    config: EngineConfig,
    wished: int,
    device: torch.device,
) -> int:
    """The context that fits on a GPU beside the weights; one that was asked for stays."""
    if device.type == "cpu" or config.context_length is not None:
        return wished
    free = _usable_gpu_bytes(device, config)
    room = free - _needed_bytes(directory, model, config, 0)
    fits = room // KVPool.bytes_needed(model, 1, _cache_dtype(config))
    return min(wished, max(SMALLEST_CONTEXT, fits // CONTEXT_STEP * CONTEXT_STEP))


def may_round(config: EngineConfig) -> bool:
    """Whether keys and values may be kept in int8 for want of memory: not where another format or
    exact maths was asked for."""
    return config.kv == "auto" and config.precision != "fp32"


def _cache_dtype(config: EngineConfig) -> torch.dtype:
    """Of the KV cache on a GPU."""
    return cache_dtype(config.kv, torch.float32 if config.precision == "fp32" else torch.bfloat16)


def _needed_bytes(
    directory: ModelDirectory, model: ModelConfig, config: EngineConfig, context_length: int
) -> int:
    """GPU memory for weights, cache and work."""
    cache = KVPool.bytes_needed(model, context_length, _cache_dtype(config))
    return weight_bytes(directory, model, config.precision) + cache + GPU_WORKSPACE_BYTES


def select_kernels(
    config: EngineConfig, model: ModelConfig, device: torch.device, *, packed: bool
) -> KernelBackend:
    """The kernels for a model; what was asked for by name is met or refused.

    Args:
        config: what was asked for.
        model: the model.
        device: where to compute.
        packed: whether its weights come from a store.

    Raises:
        DeviceError: ``backend.unavailable``.
    """
    requested = config.backend
    gpu = device.type != "cpu" or why_not_triton(device) is None  # or its interpreter
    unfit = {
        "triton": _why_not_blocks(config, model),
        "cpu": _why_not_host(config, packed=packed),
    }
    try:
        reason = unfit.get(requested)
        if reason is not None:
            raise BackendUnavailableError(requested, reason)
        if requested == "auto" and unfit["triton" if gpu else "cpu"] is not None:
            requested = "reference"
        return select_backend(requested, device)
    except BackendUnavailableError as error:
        raise DeviceError(
            "backend.unavailable", backend=error.backend, reason=error.reason
        ) from None


def described(
    kernels: KernelBackend,
    config: EngineConfig,
    model: ModelConfig,
    device: torch.device,
    *,
    packed: bool,
) -> str:
    """The kernels' name; of the host's also their instructions, or why others stand in for them."""
    if isinstance(kernels, CpuBackend):
        return f"cpu ({kernels.instructions})"
    if kernels.name != "reference" or config.backend != "auto":
        return kernels.name
    if device.type != "cpu":
        reason = why_not_triton(device) or _why_not_blocks(config, model)
        return f"reference (the faster triton kernels cannot run: {reason})"
    fit = _why_not_host(config, packed=packed) is None
    if fit and (missing := why_missing()) is not None:
        return f"reference (the faster cpu kernels are missing: {missing})"
    return kernels.name


def _why_not_host(config: EngineConfig, *, packed: bool) -> str | None:
    """Why the C kernels are not what was wished, if they are not."""
    if config.precision == "fp32":
        return "they round activations to integers, and fp32 asks for exact maths"
    if not packed:
        return "they compute on packed weights: xverse convert makes them"
    return None


def _why_not_blocks(config: EngineConfig, model: ModelConfig) -> str | None:
    """Why the Triton kernels cannot compute this model as wished, if they cannot."""
    if config.backend == "reference":
        return "the reference kernels were asked for"
    if config.precision == "fp32":
        return "they compute in bf16 or fp16, not in fp32"
    widths = (
        model.intermediate_size,
        model.hidden_size,
        model.num_kv_heads * model.head_dim,
    )
    odd = [width for width in widths if width % ROWS]
    if odd:
        return f"they need widths that are multiples of {ROWS}, not {odd[0]}"
    return None
