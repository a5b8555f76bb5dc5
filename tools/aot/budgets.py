"""What a build may cost. Registers and counts were set from what triton 3.7.1 makes, with a little
room; where a number buys something, it is said what.
"""

from __future__ import annotations

from collections.abc import Iterator

from tools.aot.targets import KB, TARGETS
from tools.aot.types import Build
from xverse_kernels.triton.versions import Version

# Most registers of a thread, by kernel, bits of its weights and rows of its tile. A multiprocessor
# has 65536, so 64 registers let 32 warps wait for memory at a time, 72 28, 128 16, and 168 12.
REGISTERS: dict[tuple[str, int, int], int] = {
    # eight loads of 16 bytes a thread are on their way at once: few warps suffice
    ("linear", 16, 0): 136,
    ("gate_up", 16, 0): 64,
    ("down", 16, 0): 168,
    # one block of words ahead
    ("linear", 8, 0): 64,
    ("linear", 4, 0): 72,
    ("gate_up", 8, 0): 64,
    ("gate_up", 4, 0): 64,
    ("down", 8, 0): 64,
    ("down", 4, 0): 72,
    ("down_parts", 16, 0): 112,
    ("down_parts", 8, 0): 64,
    ("down_parts", 4, 0): 72,
    ("add_parts", 0, 0): 112,
    ("copy_small", 0, 0): 40,
    # query, keys, values and running sums of half a head in every thread; 16 warps, 14 on Blackwell
    ("decode_attention", 0, 0): 144,
    ("prefill_attention", 0, 64): 208,
    ("router", 0, 0): 64,
    ("choose", 0, 0): 40,
    ("rotate_and_cache", 0, 0): 64,
    # one warp holds 1024 keys of 64 bits; 12 warps
    ("candidates", 0, 0): 168,
    ("draw", 0, 0): 64,
    ("sort_pairs", 0, 0): 64,
    ("combine", 0, 0): 64,
    ("dequantise", 8, 0): 64,
    ("dequantise", 4, 0): 64,
    # limited by shared memory, or by the sums that one program has to hold
    ("grouped_gate_up", 16, 32): 96,
    ("grouped_gate_up", 16, 64): 168,
    ("grouped_gate_up", 16, 128): 232,
    ("grouped_down", 16, 32): 96,
    ("grouped_down", 16, 64): 200,
    ("grouped_down", 16, 128): 216,
    ("grouped_gate_up", 8, 16): 64,
    ("grouped_gate_up", 8, 32): 112,
    ("grouped_gate_up", 8, 64): 168,
    ("grouped_gate_up", 8, 128): 255,
    ("grouped_down", 8, 16): 72,
    ("grouped_down", 8, 32): 112,
    ("grouped_down", 8, 64): 152,
    ("grouped_down", 8, 128): 224,
    ("grouped_gate_up", 4, 16): 88,
    ("grouped_gate_up", 4, 32): 144,
    ("grouped_gate_up", 4, 64): 176,
    ("grouped_gate_up", 4, 128): 255,
    ("grouped_down", 4, 16): 88,
    ("grouped_down", 4, 32): 168,
    ("grouped_down", 4, 64): 168,
    ("grouped_down", 4, 128): 224,
}
# Programs that a multiprocessor runs at a time at the least, where a tile was chosen for that: by
# matrix unit, bits of the weights and rows.
PROGRAMS = {
    ("wgmma", 0, 64): 3,
    ("wgmma", 16, 32): 3,
    ("wgmma", 16, 64): 2,
    ("mma", 0, 64): 2,
    ("mma", 16, 32): 2,
    ("mma", 16, 64): 2,
    ("mma", 8, 32): 2,
    ("mma", 8, 64): 2,
    ("mma", 4, 32): 2,
    ("mma", 4, 64): 2,
}
# Matrix instructions of tiles with at least 64 rows; smaller ones take those of single warps.
WARP_MATRIX = ("HMMA",)
GROUP_MATRIX = {"mma": ("HMMA",), "wgmma": ("HGMMA",), "tcgen05": ("UTCHMMA",)}
TENSOR_MEMORY = 512  # columns of a multiprocessor
# Instructions of the main loop a weight on compute capability 9.0, by kernel, bits and whether a
# norm is multiplied in. 132 multiprocessors begin 4 x 32 a cycle, at 1.7 GHz 28.7 T/s: with 3.6 a
# weight 8.0 T weights/s, or 4.5 TB/s of int4 and its scales, against 3.0 TB/s that memory delivers.
PER_WEIGHT = {
    ("gate_up", 4, False): 3.6,
    ("down", 4, False): 3.8,
    ("down_parts", 4, False): 3.8,
    ("linear", 4, False): 3.8,
    ("linear", 4, True): 4.5,
    ("gate_up", 8, False): 4.4,
    ("down", 8, False): 5.1,
    ("down_parts", 8, False): 5.1,
    ("linear", 8, False): 4.4,
    ("linear", 8, True): 5.0,
}
# The same of attention for every element of keys and values, by whether they are int8: 3.4 let
# 8.4 T elements/s through, 17 TB/s of bf16.
PER_ELEMENT = {False: 3.4, True: 4.1}


def name_of(launch: Version) -> str:
    return launch.kernel.removesuffix("_kernel")


def violations(build: Build) -> Iterator[str]:
    """Every budget that a build breaks, in words."""
    if build.error:
        yield f"does not compile: {build.error}"
        return
    yield from _pdl(build)
    yield from _memory(build)
    yield from _wide_loads(build)
    yield from _matrix(build)
    if TARGETS[build.target].is_cuda:
        yield from _occupancy(build)
    if build.target == "sm_90":
        yield from _instructions(build)


def _pdl(build: Build) -> Iterator[str]:
    constant = bool(build.launch.constant.get("PDL", False))
    if build.launch.pdl != constant:
        yield f"launched with pdl={build.launch.pdl}, compiled with PDL={constant}"
    if constant and not TARGETS[build.target].pdl:
        yield "programmatic dependent launch, which the device does not have"


def _memory(build: Build) -> Iterator[str]:
    limit = TARGETS[build.target].shared_memory
    if build.stack or build.local_accesses:
        yield f"spills: {build.stack} bytes of stack, {build.local_accesses} accesses"
    if build.shared > limit:
        yield f"{build.shared} bytes of shared memory, the device has {limit}"
    if build.tensor_memory > TENSOR_MEMORY:
        yield f"{build.tensor_memory} columns of tensor memory, the device has {TENSOR_MEMORY}"


def _occupancy(build: Build) -> Iterator[str]:
    launch, target = build.launch, TARGETS[build.target]
    rows = launch.constant.get("BLOCK_M", 0)
    most = REGISTERS[name_of(launch), launch.bits, rows]
    if build.registers > most:
        yield f"{build.registers} registers, the budget is {most}"
    least = PROGRAMS.get((target.unit, launch.bits, rows), 1)
    if programs_at_once(build) < least:
        yield f"{programs_at_once(build)} programs at a time, planned were {least}"


def programs_at_once(build: Build) -> int:
    """Programs that fit on a multiprocessor: registers go to warps by 256, and every program takes
    1 KB of shared memory more than it asks for."""
    target, launch = TARGETS[build.target], build.launch
    warp_registers = -(-build.registers * 32 // 256) * 256
    return min(
        target.registers // (warp_registers * launch.warps),
        target.threads // launch.threads,
        target.shared_memory_total // (build.shared + KB),
    )


def _wide_loads(build: Build) -> Iterator[str]:
    needed, in_loop = wide_loads_needed(build.launch)
    in_loop = in_loop and TARGETS[build.target].is_cuda
    found = build.loop_wide_loads if in_loop else build.wide_loads
    if found < needed:
        where = "in the main loop" if in_loop else "in all"
        yield f"{found} loads of 128 bits {where}: {needed} bring what a thread reads"


def wide_loads_needed(launch: Version) -> tuple[int, bool]:
    """(loads of 16 bytes that a thread needs for all of its weights, or keys and values; whether in
    one round of its main loop). With so many there is no narrower load among them."""
    of, kernel, threads = launch.constant, name_of(launch), launch.threads
    if kernel == "decode_attention":  # of an int8 cache a thread reads 8 bytes at a time
        return (0 if of["INT8"] else 2 * of["BLOCK"] * of["DIM"] * 2 // (16 * threads)), True
    if kernel == "prefill_attention":
        if of["INT8"]:  # values come as the product wants them, 16 columns take half the threads
            return of["BLOCK_N"] * of["WIDE"] // (16 * threads), True
        return 2 * of["BLOCK_N"] * of["DIM"] * 2 // (16 * threads), True
    if kernel == "router":
        return of["TILE"] * of["HIDDEN_PADDED"] * 4 // (16 * threads), False
    if kernel == "combine":
        return of["SLOTS"] * of["BLOCK"] * 2 // (16 * threads), False
    if kernel in ("grouped_gate_up", "grouped_down"):
        columns = of["BLOCK_N"] * (2 if kernel == "grouped_gate_up" else 1)
        if launch.bits > 8:
            return (of["BLOCK_M"] + columns) * of["BLOCK_K"] * 2 // (16 * threads), True
        return _packed(16 * columns, threads), True
    if kernel == "dequantise":
        return _packed(16 * of["WORDS"], threads), False
    if kernel == "add_parts":
        return (1 + of["TABLES"]) * of["SLOTS"] * of["BLOCK"] * 4 // (16 * threads), False
    if kernel in ("linear", "gate_up", "down", "down_parts"):
        rows = of["ROWS"] * (2 if kernel == "gate_up" else 1)
        if launch.bits <= 8:
            return _packed(rows * of["BLOCK"], threads), True
        columns = of[{"linear": "K", "gate_up": "HIDDEN"}.get(kernel, "WIDTH")]
        rounds = -(-columns // of["BLOCK"])  # all of them unrolled, and one load of x in each
        return rounds * (rows + 1) * of["BLOCK"] * 2 // (16 * threads), kernel == "down"
    return 0, False


def _packed(words: int, threads: int) -> int:
    """For ``words`` of a program and the fp16 scale of each."""
    return words * 4 // (16 * threads) + words * 2 // (16 * threads)


def _matrix(build: Build) -> Iterator[str]:
    if not build.launch.has_products:
        return
    unit = TARGETS[build.target].unit
    if not build.matrix:
        yield "no matrix instructions"
    elif unit in GROUP_MATRIX:
        large = build.launch.constant["BLOCK_M"] >= 64
        wanted = GROUP_MATRIX[unit] if large else WARP_MATRIX
        if build.matrix_names != wanted:
            yield f"matrix instructions {build.matrix_names}, not {wanted}"


def _instructions(build: Build) -> Iterator[str]:
    launch = build.launch
    if name_of(launch) == "decode_attention":
        most = PER_ELEMENT[launch.constant["INT8"]]
        if not 0 < instructions_per_element(build) <= most:
            each = instructions_per_element(build)
            yield f"{each:.2f} instructions an element, the budget is {most}"
        return
    key = (name_of(launch), launch.bits, bool(launch.constant.get("HAS_NORM", False)))
    most = PER_WEIGHT.get(key)
    if most is not None and not 0 < instructions_per_weight(build) <= most:
        yield f"{instructions_per_weight(build):.2f} instructions a weight, the budget is {most}"


def instructions_per_element(build: Build) -> float:
    """Of the main loop of decode attention, for an element of a key or value. 0 without a loop."""
    of = build.launch.constant
    elements = 2 * of["BLOCK"] * of["DIM"] // build.launch.threads
    loads = build.loop_half_loads * 8 if of["INT8"] else build.loop_wide_loads * 8
    return build.loop / elements if loads == elements else 0.0


def instructions_per_weight(build: Build) -> float:
    """Of the main loop of a packed GEMV; the compiler may have unrolled it, so its loads tell how
    many weights a round of it takes. 0 without a loop."""
    launch = build.launch
    rows = launch.constant["ROWS"] * (2 if name_of(launch) == "gate_up" else 1)
    weights = rows * launch.constant["BLOCK"] // launch.threads * (32 // launch.bits)
    rounds = build.loop_wide_loads / wide_loads_needed(launch)[0]
    return build.loop / (weights * rounds) if rounds else 0.0
