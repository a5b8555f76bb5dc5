"""Small models and machines for the simulator's tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from random import Random

from xverse_runtime.offload.machine import Machine
from xverse_runtime.offload.machines import find_machine
from xverse_runtime.offload.policy import ExpertPolicy, LeastRecentlyUsed
from xverse_runtime.offload.scheduler import Way
from xverse_runtime.offload.simulator import Options, Simulation
from xverse_runtime.offload.simulator_workload import Workload
from xverse_runtime.offload.synthetic_routing import RoutingModel, SyntheticRouting
from xverse_runtime.offload.trace import RoutedToken

# Bytes and seconds that can be added up by hand.
MACHINE = replace(
    find_machine("4060"),
    host_bandwidth=100.0,
    cpu_expert_bandwidth=40.0,
    link_to_gpu=50.0,
    vram_bandwidth=1000.0,
    gpu_flops=1000.0,
    copy_latency=0.1,
    launch_per_layer=1.0,
    launch_per_token=2.0,
    disk_bandwidth=10.0,
)
WORK = Workload(layers=1, experts=4, top_k=2, block=100, before=500, always=200, head=1000)

SMALL = RoutingModel(layers=4, experts=16, top_k=4)


@cache
def small_trace(tokens: int, number: int = 0) -> Sequence[RoutedToken]:
    """A text of the small model, with runners-up."""
    return tuple(SyntheticRouting(SMALL).text(number, tokens, listed=8))


def small_work(block: int, before: float = 3.0) -> Workload:
    """The small model; ``before`` in blocks."""
    return Workload(4, 16, 4, block, before * block, always=2 * block, head=5 * block)


def random_machine(draw: Random) -> Machine:
    """From two slow channels and PCIe 3.0 x4 to a server, with any balance of CPU and link."""
    host = draw.uniform(10e9, 100e9)
    return replace(
        find_machine("4060"),
        host_bandwidth=host,
        cpu_expert_bandwidth=host * draw.uniform(0.1, 1),
        link_to_gpu=2 ** draw.uniform(1, 6) * 1e9,
        vram_bandwidth=draw.uniform(100e9, 1000e9),
        copy_latency=draw.uniform(3e-6, 5e-5),
        launch_per_layer=draw.uniform(1e-5, 1e-4),
    )


def simulation(
    work: Workload = WORK,
    machine: Machine = MACHINE,
    slots: int = 0,
    policy: Callable[[], ExpertPolicy] = LeastRecentlyUsed,
    way: Way = "both",
    *,
    journal: bool = False,
) -> Simulation:
    return Simulation(work, machine, slots, policy(), Options(way, journal=journal))
