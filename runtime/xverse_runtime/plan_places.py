"""How much memory a plan may use, and what goes where within it, on a GPU or without one."""

from __future__ import annotations

from xverse_runtime.model_sizes import ModelSizes
from xverse_runtime.offload.machine import Machine
from xverse_runtime.prediction import Placement

MIB = 2**20
# Left free of a GPU for what its driver and other programs take later: a 32nd, within bounds.
GPU_MARGIN = (256 * MIB, 1024 * MIB)
HOST_MARGIN = (512 * MIB, 4096 * MIB)
MARGIN_PARTS = 32

# A piece of a prompt on a GPU; every piece streams the absent experts once, so few large ones are
# fastest. Its workspace takes a 16th of the budget at most, which only small GPUs notice.
MOST_TOKENS, LEAST_TOKENS, TOKEN_STEP = 2048, 64, 64
WORKSPACE_PARTS = 16
CPU_TOKENS = 128
MOST_FEW = 128  # tokens of a pass whose parts are buffered where experts are divided
# Two buffers of at least one expert each: copies are large enough then, and more hide waits.
STAGING = 256 * MIB

PROCESS = 2**30  # of a program with torch and CUDA: libraries, their heaps, the tokenizer
CPU_PROCESS = 2**29
UPLOAD = 64 * MIB  # pinned buffers that a store is loaded through


def gpu_budget(machine: Machine, cap: int | None) -> int:
    """Bytes that a plan may use of the GPU."""
    return _budget(machine.vram_total, machine.vram_free, cap, GPU_MARGIN)


def host_budget(machine: Machine, cap: int | None) -> int:
    """Bytes that a plan may use of the host."""
    return _budget(machine.host_total, machine.host_free, cap, HOST_MARGIN)


def _budget(total: int, free: int, cap: int | None, margins: tuple[int, int]) -> int:
    margin = min(max(margins[0], total // MARGIN_PARTS), margins[1])
    room = max(0, free - margin)
    return room if cap is None else min(room, cap)


def place_on_gpu(
    sizes: ModelSizes,
    machine: Machine,
    gpu: int,
    host: int,
    *,
    precision: str,
    context: int,
    kv: str,
) -> Placement | None:
    """Everything on the GPU when it fits; else experts in slots, and the rest of them on the host.

    Args:
        sizes: the model.
        machine: for what it can pin.
        gpu: bytes to use of the GPU.
        host: bytes to use of the host.
        precision: the preset's name.
        context: tokens.
        kv: format of the cache.

    Returns:
        ``None`` where the cache, the dense weights and a prompt's workspace do not fit, or the
        host has no room for the program.
    """
    workspace, tokens = _workspace(sizes, gpu, context)
    steps, embedding = sizes.steps(), sizes.separate_embedding()
    room = gpu - sizes.dense - sizes.kv(context, kv) - workspace - steps
    on_gpu = room >= sizes.routed + embedding
    if not on_gpu and sizes.config.is_moe:
        buffers = sizes.token_buffers(1 + MOST_FEW)  # one set for single tokens, one for several
        steps, room = steps + buffers, room - buffers
    staging, slots = 0, sizes.routed_blocks
    if room < sizes.routed:
        if not sizes.config.is_moe:
            return None
        staging = _staging(sizes)
        slots = (room - staging) // sizes.block
    if slots < 0 or room < 0:
        return None
    pinned = min(UPLOAD, machine.pinnable)
    mapped = 0
    if slots < sizes.routed_blocks:
        spare = host - PROCESS - staging - embedding
        if spare < 0:
            return None
        most = min(sizes.routed, spare, machine.pinnable - staging)
        pinned = staging + most // sizes.block * sizes.block if most >= 0 else machine.pinnable
    used = PROCESS + max(pinned, staging)
    if used > host:
        return None
    if not on_gpu:
        beside = sizes.routed - max(0, pinned - staging) if slots < sizes.routed_blocks else 0
        mapped = min(embedding + beside, host - used)
    return Placement(
        sizes=sizes,
        device="cuda",
        precision=precision,
        context=context,
        kv=kv,
        embedding_device="cuda" if on_gpu or not embedding else "cpu",
        expert_slots=slots,
        prefill_chunk=tokens,
        workspace=workspace,
        steps=steps,
        staging=staging,
        pinned=pinned,
        host=used,
        mapped=mapped,
    )


def place_on_cpu(
    sizes: ModelSizes, host: int, *, precision: str, context: int, kv: str
) -> Placement | None:
    """Everything on the host: weights are mapped files, of which it keeps what it can.

    ``None`` where the cache and a prompt's workspace do not fit.
    """
    tokens = min(CPU_TOKENS, context)
    workspace = sizes.workspace(tokens)
    used = CPU_PROCESS + sizes.kv(context, kv) + workspace
    if used > host:
        return None
    return Placement(
        sizes=sizes,
        device="cpu",
        precision=precision,
        context=context,
        kv=kv,
        embedding_device="cpu",
        expert_slots=0,
        prefill_chunk=tokens,
        workspace=workspace,
        staging=0,
        pinned=0,
        host=used,
        mapped=min(sizes.weights(), host - used),
    )


def _workspace(sizes: ModelSizes, gpu: int, context: int) -> tuple[int, int]:
    """Bytes to reserve, and the tokens of a piece that fit in them."""
    most = min(MOST_TOKENS, -(-context // TOKEN_STEP) * TOKEN_STEP)
    least = min(LEAST_TOKENS, most)
    share = gpu // WORKSPACE_PARTS
    reserved = min(sizes.workspace(most), max(sizes.workspace(least), share))
    each = sizes.workspace(1) - sizes.workspace(0)
    tokens = (reserved - sizes.workspace(0)) // each // TOKEN_STEP * TOKEN_STEP
    return reserved, tokens


def _staging(sizes: ModelSizes) -> int:
    """Two buffers of whole experts; the same whatever the GPU has."""
    return max(1, STAGING // 2 // sizes.block) * 2 * sizes.block
