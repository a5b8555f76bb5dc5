"""Where to compute and in which precision, decided before anything is loaded."""

from __future__ import annotations

import re
from collections.abc import Iterable

import torch
from torch import Tensor

from xverse_kernels.backend import KernelBackend
from xverse_kernels.cpu.backend import CpuBackend
from xverse_kernels.cpu.extension import physical_cores
from xverse_runtime.errors import DeviceError, ResourceError, UsageError
from xverse_runtime.host_memory import host_memory
from xverse_runtime.why_no_gpu import why_no_gpu

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
QUANTISED = ("int8", "int4")
PUBLISHED_DTYPES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
GPU_WORKSPACE_BYTES = 2**30  # activations of a piece of a prompt, and torch's own
# The operations of a model up to this size are too short to share: a second thread gains nothing
# on an idle machine, and on a busy one waiting for it costs 10 times the work (measured: the demo
# model beside another program, 92 tokens/s with one thread and 8 with two).
SINGLE_THREAD_BYTES = 64 * 2**20
# Weights up to this size run in fp32 on the CPU by default: exact, and faster than bf16 there.
SMALL_MODEL_BYTES = 2 * 2**30


def select_device(requested: str) -> tuple[torch.device, str]:
    """The device and the reason for it.

    Raises:
        UsageError: ``device.unknown``.
        DeviceError: ``device.unavailable``, saying why; an explicit wish never falls back.
    """
    if requested not in ("auto", "cpu", "cuda"):
        raise UsageError("device.unknown", device=requested, choices="auto, cpu, cuda")
    if requested == "cpu":
        return torch.device("cpu"), "requested"
    reason = why_no_gpu()
    if reason is None:
        return torch.device("cuda", torch.cuda.current_device()), "a CUDA device is present"
    if requested == "cuda":
        raise DeviceError("device.unavailable", device=requested, reason=reason)
    return torch.device("cpu"), reason


def select_precision(
    requested: str, published: str | None, parameters: int, device: torch.device
) -> str:
    """The precision to compute in: ``fp32``, ``bf16`` or ``fp16``.

    Args:
        requested: one of those, or ``auto``.
        published: the checkpoint's ``torch_dtype``.
        parameters: how many weights there are.
        device: where they will be.

    Raises:
        UsageError: ``precision.unsupported``.
    """
    if requested != "auto":
        if requested not in DTYPES:
            supported = ", ".join(("auto", *DTYPES))
            raise UsageError("precision.unsupported", precision=requested, supported=supported)
        return requested
    if device.type == "cpu":
        small = parameters * torch.float32.itemsize <= SMALL_MODEL_BYTES
        return "fp32" if small else PUBLISHED_DTYPES.get(published or "", "bf16")
    return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp16"


def set_threads(
    requested: int | None, weight_bytes: int, device: torch.device, kernels: KernelBackend
) -> int:
    """Set the CPU threads for a model of this size; returns their number.

    The C kernels have threads of their own. Torch then gets one: two pools that spin while they
    wait would take the processor from each other.
    """
    small = device.type == "cpu" and weight_bytes <= SINGLE_THREAD_BYTES
    if isinstance(kernels, CpuBackend):
        torch.set_num_threads(1)
        return kernels.set_threads(requested or (1 if small else physical_cores()))
    if requested is not None:
        torch.set_num_threads(requested)
    elif small:
        torch.set_num_threads(1)
    return torch.get_num_threads()


def check_memory(
    tensors: Iterable[Tensor], cache_bytes: int, dtype: torch.dtype, device: torch.device
) -> None:
    """Refuse what cannot fit: weights that must be copied, and the KV cache.

    Weights that stay memory-mapped views need no memory of their own.

    Raises:
        ResourceError: ``memory.insufficient``.
    """
    on_cpu = device.type == "cpu"
    copied = sum(t.numel() for t in tensors if not on_cpu or t.dtype != dtype) * dtype.itemsize
    needed = copied + cache_bytes
    if not on_cpu:
        needed += GPU_WORKSPACE_BYTES
    if on_cpu:
        memory = host_memory()
        free = needed if memory is None else memory[1]
    else:
        free = free_gpu_bytes(device)
    if needed > free:
        raise ResourceError(
            "memory.insufficient", needed_bytes=needed, free_bytes=free, device=str(device)
        )


def free_gpu_bytes(device: torch.device) -> int:
    """What can be allocated on a GPU, with what torch keeps for itself but does not use."""
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + unused


def out_of_memory(device: torch.device, error: BaseException) -> ResourceError:
    """The error for a device whose memory ran out, with what torch says about it; a number that
    nobody knows is ``None``."""
    free: int | None
    held: int | None = None
    others: int | None = None
    if device.type == "cuda":
        free = free_gpu_bytes(device)
        held = torch.cuda.memory_allocated(device)
        others = max(0, torch.cuda.mem_get_info(device)[1] - free - held)
    else:
        memory = host_memory()
        free = None if memory is None else memory[1]
    return ResourceError(
        "memory.exhausted",
        device=str(device),
        needed_bytes=_wanted_bytes(str(error)),
        free_bytes=free,
        held_bytes=held,
        others_bytes=others,
        detail=str(error).split(". ")[0],
    )


def _wanted_bytes(message: str) -> int | None:
    """What torch says that it tried to allocate, if it does."""
    found = re.search(r"Tried to allocate ([0-9.]+) (bytes|[KMG]iB)", message)
    return None if found is None else int(float(found[1]) * 1024 ** "bKMG".index(found[2][0]))
