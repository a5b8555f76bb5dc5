"""What a model gets on this machine: device, kernels and a context that fits beside its weights."""

from __future__ import annotations

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
from xverse_runtime.errors import DeviceError
from xverse_runtime.kv_cache import KVPool, cache_dtype
from xverse_runtime.loading import weight_bytes
from xverse_runtime.model_dir import ModelDirectory
from xverse_runtime.store.manifest import is_store


def choose_device(
    directory: ModelDirectory, model: ModelConfig, config: EngineConfig, context_length: int
) -> tuple[torch.device, str]:
    """The device and the reason; `auto` takes a GPU only if the model fits and can run there.

    Raises:
        UsageError: ``device.unknown``.
        DeviceError: ``device.unavailable``.
    """
    device, reason = select_device(config.device)
    if config.device != "auto" or device.type == "cpu":
        return device, reason
    unpacked = why_not_triton(device) or _why_not_blocks(config, model)
    if is_store(directory) and unpacked is not None:
        return torch.device("cpu"), f"packed weights need the Triton kernels on a GPU: {unpacked}"
    least = context_length if config.context_length else min(context_length, SMALLEST_CONTEXT)
    needed = _needed_bytes(directory, model, config, least)
    free = free_gpu_bytes(device)
    if needed > free:
        gib = 2**30
        sizes = f"the model needs {needed / gib:.1f} GiB, the GPU has {free / gib:.1f} GiB free"
        return torch.device("cpu"), sizes
    return device, reason


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
    free = free_gpu_bytes(device)
    room = free - _needed_bytes(directory, model, config, 0)
    fits = room // KVPool.bytes_needed(model, 1, _cache_dtype(config))
    return min(wished, max(SMALLEST_CONTEXT, fits // CONTEXT_STEP * CONTEXT_STEP))


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


def described(kernels: KernelBackend, config: EngineConfig, *, packed: bool) -> str:
    """The kernels' name; of the host's also their instructions, or why others stand in for them."""
    if isinstance(kernels, CpuBackend):
        return f"cpu ({kernels.instructions})"
    stand_in = kernels.name == "reference" and config.backend == "auto"
    fit = _why_not_host(config, packed=packed) is None
    if stand_in and fit and (missing := why_missing()) is not None:
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
