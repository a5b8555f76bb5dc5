"""All builds of the gate: every version of every kernel on every target."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor

import torch

from tools.aot.build import build
from tools.aot.launches import record
from tools.aot.targets import TARGETS, Target
from tools.aot.types import Build
from xverse_kernels.packing import BF16, FP16, INT4, INT8
from xverse_kernels.triton.versions import Version

JOBS = 2


def launches(target: Target) -> list[Version]:
    """What a target has to compile, in every weight format.

    Compute capability 7.5 has fp16 only, and triton multiplies matrices there without matrix
    instructions: kernels that do are left out.
    """
    old = target.capability == 75
    dtype, dense = (torch.float16, FP16) if old else (torch.bfloat16, BF16)
    found: dict[Version, None] = {}
    for form in (dense, INT8, INT4):
        found.update(dict.fromkeys(record(target, dtype, form)))
    return [one for one in found if not (old and one.has_products)]


def one_tile(versions: Sequence[Version]) -> list[Version]:
    """One version of each kernel, of those with weights one dense and one int4, of those on a cache
    one for each format: the last, which is that for the most tokens and so the largest tile."""
    chosen = {
        (one.kernel, one.bits, one.constant.get("INT8", False)): one
        for one in versions
        if one.bits != 8
    }
    return list(chosen.values())


def build_all(names: Sequence[str], *, quick: bool, jobs: int = JOBS) -> list[Build]:
    """Compile for the targets ``names``; ``quick``: one tile of each kernel."""
    work: list[tuple[Version, Target]] = []
    for name in names:
        versions = launches(TARGETS[name])
        work += [(one, TARGETS[name]) for one in (one_tile(versions) if quick else versions)]
    # processes of their own: the compiler is not made for threads, and takes nothing from a cache
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TRITON_CACHE_DIR"] = folder
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(jobs, mp_context=context) as pool:
            return list(pool.map(build, *zip(*work, strict=True)))
