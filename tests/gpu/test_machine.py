"""The measured machine on a GPU: plausible figures in a moment, and a plan made of them."""

from __future__ import annotations

from time import perf_counter

import torch

from xverse_runtime.config import ModelConfig
from xverse_runtime.memory_plan import Wishes, plan_memory
from xverse_runtime.offload.measure import measure_machine
from xverse_runtime.store.synthetic import A4_2B

DEVICE = torch.device("cuda", 0)


def test_a_gpu_is_measured_in_a_moment() -> None:
    measure_machine(DEVICE)  # the first call loads libraries
    started = perf_counter()
    machine = measure_machine(DEVICE)
    assert perf_counter() - started < 2
    assert machine.gpu == torch.cuda.get_device_name(DEVICE)
    assert 0 < machine.vram_free <= machine.vram_total
    assert 50e9 < machine.vram_bandwidth < 20e12
    assert 0.5e9 < machine.link_to_gpu < 1e12
    assert 0.5e9 < machine.link_to_host < 1e12
    assert 0 < machine.copy_latency < 1e-3
    assert 1e11 < machine.gpu_flops < 1e16


def test_its_plan_fits_what_is_free() -> None:
    machine = measure_machine(DEVICE)
    wishes = Wishes(precision="int4", context=4096)
    plan = plan_memory(ModelConfig.from_dict(A4_2B), machine, wishes)
    assert plan.placement.gpu <= torch.cuda.mem_get_info(DEVICE)[0]
