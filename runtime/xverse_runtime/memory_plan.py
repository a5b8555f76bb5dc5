"""What goes where, decided before anything is loaded: precision, cache, slots, buffers.

The worst piece of a prompt is reserved first, then what every token needs; what is left of the
GPU becomes slots for experts. docs/memory-plan.md tells the rules and the formulas.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache

from xverse_runtime.config import CONTEXT_STEP, SMALLEST_CONTEXT, ModelConfig
from xverse_runtime.errors import DeviceError, ResourceError, UsageError
from xverse_runtime.model_sizes import KV_BITS, ModelSizes
from xverse_runtime.offload.machine import Machine
from xverse_runtime.plan_places import gpu_budget, host_budget, place_on_cpu, place_on_gpu
from xverse_runtime.prediction import Placement, Prediction, predict
from xverse_runtime.store.layout import StoreLayout
from xverse_runtime.store.precision import PRESETS
from xverse_runtime.suitable import most_suitable

DEVICES = ("auto", "cuda", "cpu")
# Rounding keys and values costs a little quality: it has to buy at least this much speed.
KV_GAIN = 1.05
PINNED_STEPS = 8  # shares of the experts to try, where the host cannot hold all of them


@dataclass(frozen=True)
class Wishes:
    """What the user asks for.

    Args:
        device: ``auto``, ``cuda`` or ``cpu``.
        precision: ``auto``, ``bf16``, ``int8`` or ``int4``.
        context: tokens; ``None`` is the trained context, or less where that does not fit.
        kv: ``auto`` or a format of the KV cache: ``bf16``, ``int8``.
        kv_formats: the formats that the kernels read, for ``auto`` to choose from.
        gpu_memory: most bytes to use of the GPU.
        cpu_memory: most bytes to use of the host.
        offload: whether a GPU may hold some of the experts only.
    """

    device: str = "auto"
    precision: str = "auto"
    context: int | None = None
    kv: str = "auto"
    kv_formats: tuple[str, ...] = tuple(KV_BITS)
    gpu_memory: int | None = None
    cpu_memory: int | None = None
    offload: bool = True


@dataclass(frozen=True)
class MemoryPlan:
    """A placement, the bytes it was made for, and what it will do."""

    placement: Placement
    gpu_budget: int
    host_budget: int
    prediction: Prediction


def plan_memory(config: ModelConfig, machine: Machine, wishes: Wishes | None = None) -> MemoryPlan:
    """The plan for a model on a machine.

    ``auto`` precision is the highest one predicted at reading speed with that context, else the
    lowest. Within a precision the faster device and format of the cache are taken.

    Raises:
        UsageError: ``device.unknown``, ``precision.unsupported``, ``kv.unsupported``,
            ``context.too_long`` or ``store.width``.
        DeviceError: ``device.unavailable``.
        ResourceError: ``plan.impossible``, which names the nearest possible plan, or
            ``plan.no_room``.
    """
    wishes = wishes or Wishes()
    _check(config, machine, wishes)
    planner = _Planner(config, machine, wishes)
    plans = (planner.plan(precision) for precision in planner.precisions())
    chosen = most_suitable(filter(None, plans), lambda plan: plan.prediction.tokens_per_s)
    if chosen is None:
        raise planner.refusal()
    return chosen


def plans_by_precision(
    config: ModelConfig, machine: Machine, wishes: Wishes
) -> dict[str, MemoryPlan | None]:
    """The plan at each precision that the widths allow; ``None`` where nothing fits.

    Raises:
        As `plan_memory`, but for memory.
    """
    _check(config, machine, wishes)
    planner = _Planner(config, machine, wishes)
    return {precision: planner.plan(precision) for precision in planner.precisions()}


@lru_cache
def _allowed(config: ModelConfig, precision: str) -> bool:
    """Whether the widths fit a precision; looking at all tensors takes a while."""
    with suppress(UsageError):
        StoreLayout(config, PRESETS[precision]).check()
        return True
    return False


def _check(config: ModelConfig, machine: Machine, wishes: Wishes) -> None:
    if wishes.device not in DEVICES:
        raise UsageError("device.unknown", device=wishes.device, choices=", ".join(DEVICES))
    if wishes.precision not in ("auto", *PRESETS):
        supported = ", ".join(("auto", *PRESETS))
        raise UsageError("precision.unsupported", precision=wishes.precision, supported=supported)
    if wishes.kv not in ("auto", *KV_BITS):
        raise UsageError("kv.unsupported", kv=wishes.kv, supported=", ".join(("auto", *KV_BITS)))
    if wishes.context is not None and wishes.context > config.maximum_context:
        raise UsageError(
            "context.too_long", requested=wishes.context, maximum=config.maximum_context
        )
    if wishes.device == "cuda" and not machine.has_gpu:
        reason = "this machine has no GPU that can be used"
        raise DeviceError("device.unavailable", device="cuda", reason=reason)


@dataclass(frozen=True)
class _Planner:
    config: ModelConfig
    machine: Machine
    wishes: Wishes

    def precisions(self) -> list[str]:
        """Those that were asked for and that the widths allow, the highest first.

        Raises:
            UsageError: ``store.width``: there is none.
        """
        wished = PRESETS if self.wishes.precision == "auto" else (self.wishes.precision,)
        possible = [name for name in wished if _allowed(self.config, name)]
        if not possible:
            StoreLayout(self.config, PRESETS[next(iter(wished))]).check()  # says what is wrong
        return possible

    @property
    def budgets(self) -> tuple[int, int]:
        return (
            gpu_budget(self.machine, self.wishes.gpu_memory),
            host_budget(self.machine, self.wishes.cpu_memory),
        )

    @property
    def wished_context(self) -> int:
        return self.wishes.context or self.config.trained_context

    @property
    def devices(self) -> tuple[str, ...]:
        if self.wishes.device != "auto":
            return (self.wishes.device,)
        return ("cuda", "cpu") if self.machine.has_gpu else ("cpu",)

    def plan(self, precision: str) -> MemoryPlan | None:
        """The fastest at one precision; without a wish the context shrinks until it fits."""
        plans = [self._on(device, precision, self.wished_context) for device in self.devices]
        if self.wishes.context is None:
            least = min(self.wished_context, SMALLEST_CONTEXT)
            plans = [
                plan or self.longest(device, precision, least)
                for device, plan in zip(self.devices, plans, strict=True)
            ]
        return _fastest(plans)

    def longest(self, device: str, precision: str, least: int) -> MemoryPlan | None:
        """With the longest context that fits, of at least ``least`` tokens and none more than
        wished."""
        low, high = least, self.wished_context
        best = self._on(device, precision, low)
        while best is not None and high - low > CONTEXT_STEP:
            middle = (low + high) // 2 // CONTEXT_STEP * CONTEXT_STEP
            if middle <= low:
                break
            plan = self._on(device, precision, middle)
            low, high = (middle, high) if plan else (low, middle)
            best = plan or best
        return best

    def _on(self, device: str, precision: str, context: int) -> MemoryPlan | None:
        """With the cache in the highest format, unless a lower one buys slots worth having."""
        best: MemoryPlan | None = None
        for kv in self.wishes.kv_formats if self.wishes.kv == "auto" else (self.wishes.kv,):
            plan = self._with_cache(device, precision, context, kv)
            if plan is None or (best is not None and not best.placement.offloads):
                continue
            wanted = best.prediction.tokens_per_s * KV_GAIN if best else 0.0
            if plan.prediction.tokens_per_s >= wanted:
                best = plan
        return best

    def _with_cache(self, device: str, precision: str, context: int, kv: str) -> MemoryPlan | None:
        sizes = ModelSizes(self.config, PRESETS[precision])
        on_gpu, on_host = self.budgets
        if device == "cuda":
            placements = self._on_gpu(sizes, precision, context, kv)
        else:
            on_cpu = place_on_cpu(sizes, on_host, precision=precision, context=context, kv=kv)
            placements = [on_cpu] if on_cpu else []
        return _fastest(
            [
                MemoryPlan(placement, on_gpu, on_host, predict(placement, self.machine))
                for placement in placements
                if self.wishes.offload or not placement.offloads
            ]
        )

    def _on_gpu(self, sizes: ModelSizes, precision: str, context: int, kv: str) -> list[Placement]:
        """As many experts pinned as the system allows; or fewer, where the host cannot hold all.

        The system keeps pages that are used, and pinned memory whether it is used or not: what is
        pinned then is missed by the pages, and by how much pays depends on the machine.
        """

        def place(machine: Machine) -> Placement | None:
            return place_on_gpu(
                sizes, machine, *self.budgets, precision=precision, context=context, kv=kv
            )

        most = place(self.machine)
        if most is None:
            return []
        if not most.offloads or most.pinned_experts + most.mapped >= sizes.routed:
            return [most]
        steps = (most.staging + sizes.routed * step // PINNED_STEPS for step in range(PINNED_STEPS))
        fewer = [place(replace(self.machine, pinnable=one)) for one in steps if one <= most.pinned]
        return [one for one in fewer if one is not None] or [most]

    def refusal(self) -> ResourceError:
        """Why there is no plan, and the nearest that there is."""
        on_gpu, on_host = self.budgets
        nearest = next((plan for plan in self._nearest() if plan is not None), None)
        if nearest is None:
            return ResourceError("plan.no_room", gpu_free_bytes=on_gpu, host_free_bytes=on_host)
        placement = nearest.placement
        return ResourceError(
            "plan.impossible",
            device=self.wishes.device,
            precision=self.wishes.precision,
            context=self.wished_context,
            gpu_free_bytes=on_gpu,
            host_free_bytes=on_host,
            nearest_device=placement.device,
            nearest_precision=placement.precision,
            nearest_context=placement.context,
            nearest_gpu_bytes=placement.gpu,
            nearest_host_bytes=placement.host,
            nearest_rate=round(nearest.prediction.tokens_per_s, 1),
        )

    def _nearest(self) -> Iterator[MemoryPlan | None]:
        """Other plans, the least change first: context, precision, device, the user's caps."""
        wished = self.precisions()[-1]
        following = [*PRESETS][[*PRESETS].index(wished) :]
        possible = [name for name in following if _allowed(self.config, name)]
        context = self.wished_context
        least = min(SMALLEST_CONTEXT, context)
        yield _fastest([self.longest(device, wished, least) for device in self.devices])
        for wishes in (
            self.wishes,
            replace(self.wishes, device="auto"),
            replace(self.wishes, gpu_memory=None, cpu_memory=None),
            replace(self.wishes, gpu_memory=None, cpu_memory=None, device="auto"),
        ):
            planner = replace(self, wishes=wishes)
            least = min(CONTEXT_STEP, context)
            for name in possible:
                yield _fastest([planner._on(device, name, context) for device in planner.devices])
            for name in possible:
                longest = [planner.longest(device, name, least) for device in planner.devices]
                yield _fastest(longest)


def _fastest(plans: list[MemoryPlan | None]) -> MemoryPlan | None:
    made = [plan for plan in plans if plan is not None]
    return max(made, key=lambda plan: plan.prediction.tokens_per_s, default=None)
