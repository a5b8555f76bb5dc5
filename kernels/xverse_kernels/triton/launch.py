"""What all launchers share: scratch memory, and the views of weights that kernels read."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
import triton.language as tl
from torch import Tensor
from triton import knobs
from triton.runtime import driver

from xverse_kernels.packing import ExpertBlocks, PackedMatrix
from xverse_kernels.triton.tiles import MatrixUnit
from xverse_kernels.triton.versions import Version, compile_version

COUNTERS = 1 << 16  # to begin with
MOST_PROGRAMS = 65535  # along the second and third axis of a grid
TYPE_NAMES = {
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.float32: "*fp32",
    torch.int8: "*i8",
    torch.int32: "*i32",
    torch.int64: "*i64",
}


class Workspace:
    """Scratch memory of one device: partial sums, and counters that every kernel leaves at zero.

    Kernels of one stream use it one after the other, so it is not for two streams at once.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.counters = torch.zeros(COUNTERS, dtype=torch.int32, device=device)
        self._partials = torch.empty(1 << 20, dtype=torch.float32, device=device)
        self._outgrown: list[Tensor] = []

    def zeros(self, count: int) -> Tensor:
        """int32 [at least ``count``] counters, all zero between kernels. What was smaller stays, as
        in `partials`."""
        if self.counters.numel() < count:
            self._outgrown.append(self.counters)
            self.counters = torch.zeros(count, dtype=torch.int32, device=self.device)
        return self.counters

    def partials(self, count: int) -> Tensor:
        """fp32 [at least ``count``]. What was smaller stays: graphs captured before write to it."""
        if self._partials.numel() < count:
            self._outgrown.append(self._partials)
            self._partials = torch.empty(count, dtype=torch.float32, device=self.device)
        return self._partials


def matrix_views(weight: Tensor | PackedMatrix) -> tuple[Tensor, Tensor, int, int, int]:
    """(weights as the kernel reads them, scales, bits, rows, columns) of a matrix.

    Raises:
        ValueError: rows or packed bytes that are not contiguous.
    """
    if isinstance(weight, PackedMatrix):
        flat = weight.data
        require_rows(flat)
        return (
            flat.view(torch.int32),
            flat.view(torch.float16),
            weight.form.bits,
            weight.rows,
            weight.columns,
        )
    require_rows(weight)
    return weight, weight, weight.element_size() * 8, *weight.shape


def block_views(experts: ExpertBlocks) -> tuple[Tensor, Tensor, int]:
    """(weights as the kernel reads them, scales, bits) of expert blocks.

    Raises:
        ValueError: blocks or a table that are not contiguous.
    """
    require_rows(experts.blocks, experts.table)
    form = experts.layout.form
    if form.dtype is None:
        return experts.blocks.view(torch.int32), experts.blocks.view(torch.float16), form.bits
    weights = experts.blocks.view(form.dtype)
    return weights, weights, form.bits


def require_rows(*tensors: Tensor) -> None:
    """Kernels take whole rows, one after the other.

    Raises:
        ValueError: a tensor that is not contiguous.
    """
    for tensor in tensors:
        if not tensor.is_contiguous():
            raise ValueError(
                f"kernels take contiguous rows, not strides {tensor.stride()}"
                f" of shape {tuple(tensor.shape)}: call .contiguous() first"
            )


@dataclass(frozen=True)
class Abilities:
    """What launchers ask of a device when they choose among versions of kernels.

    Args:
        unit: what multiplies matrices.
        capability: 90 for compute capability 9.0; 0 without an NVIDIA GPU.
    """

    unit: MatrixUnit
    capability: int

    @property
    def multiplies(self) -> bool:
        """Whether Triton uses the unit; it does not before 8.0."""
        return not 0 < self.capability < 80

    @property
    def pdl(self) -> bool:
        """Whether kernels can begin before the one before them has ended."""
        return self.capability >= 90


def abilities(device: torch.device) -> Abilities:
    """Of a device; of the one that is being recorded for, where tensors have no data."""
    return _recording.get().abilities if device.type == "meta" else device_abilities(device)


@functools.cache
def device_abilities(device: torch.device) -> Abilities:
    """Without a GPU as on an H100, but for the dependent launch."""
    if device.type != "cuda":
        return Abilities("wgmma", 0)
    if torch.version.hip is not None:
        return Abilities("wmma", 0)
    major, minor = torch.cuda.get_device_capability(device)
    if major == 9:
        unit: MatrixUnit = "wgmma"
    else:
        unit = "tcgen05" if major in (10, 11) else "mma"
    return Abilities(unit, 10 * major + minor)


def padded(size: int) -> int:
    """The next power of two."""
    return 1 << (size - 1).bit_length()


def triton_dtype(dtype: torch.dtype) -> Any:
    """Triton's name of a torch dtype."""
    return getattr(tl, str(dtype).removeprefix("torch."))


class UnspecialisedError(AssertionError):
    """An integer argument that triton would specialise, so that versions differ by its value."""


def type_name(name: str, arg: Any, kernel: Any) -> str:
    """As triton's signatures spell it; ``kernel`` may be one that is interpreted."""
    if isinstance(arg, Tensor):
        return TYPE_NAMES[arg.dtype]
    if isinstance(arg, float):
        return "fp32"
    if name not in getattr(kernel, "do_not_specialize", (name,)):
        raise UnspecialisedError(f"{kernel.__name__}: {name} is missing in do_not_specialize")
    return "i32"


@dataclass(frozen=True)
class Place:
    """Where a launcher looks for a version: ``key`` without the device."""

    launcher: Launcher
    key: tuple[Any, ...]

    def fill(self, device: torch.device, compiled: Any) -> None:
        """Have the launcher find it there, ready to run on ``device``, which is the current one.

        Raises:
            Exception: whatever Triton has to say about a kernel that cannot be loaded.
        """
        assert compiled.run is not None  # loads the machine code
        self.launcher.keep((device.index, *self.key), compiled)


@dataclass(frozen=True)
class Recording:
    """Versions that were launched on tensors without data, in the order of their first launch."""

    abilities: Abilities
    places: dict[Version, Place] = field(default_factory=dict)


_recording: ContextVar[Recording] = ContextVar("recording")


@contextmanager
def recording(abilities: Abilities) -> Iterator[dict[Version, Place]]:
    """Launches on the device ``meta`` are written down, as a device of ``abilities`` has them."""
    found = Recording(abilities)
    token = _recording.set(found)
    try:
        yield found.places
    finally:
        _recording.reset(token)


class Launcher:
    """Launches one kernel, and remembers what was compiled.

    Triton's own launch looks at every argument anew to choose among specialised versions, which
    takes longer than most of these kernels run. Here the version follows from the dtypes and the
    constants alone: integers are not specialised (``do_not_specialize``), and every pointer is
    aligned to 16 bytes. Tensors without data are launched by writing down what would be: see
    `recording`.
    """

    def __init__(self, kernel: Any) -> None:
        """``kernel``: a jit function whose constants come last, in the order of their names."""
        self._kernel = kernel
        self._compiled: dict[Any, Any] = {}

    def __call__(
        self,
        grid: tuple[int, ...],
        args: tuple[Any, ...],
        constants: dict[str, Any],
        *,
        warps: int = 4,
        stages: int = 3,
        registers: int | None = None,
        pdl: bool = False,
        device: torch.device | None = None,
    ) -> None:
        """Launch.

        Args:
            grid: programs along each axis; at most MOST_PROGRAMS but for the first.
            args: tensors and numbers, in the kernel's order.
            constants: all of its constants, in the kernel's order.
            warps: of a program.
            stages: of software pipelines.
            registers: most of a thread, so that as many programs run at a time as planned; NVIDIA's
                compiler alone is told.
            pdl: programmatic dependent launch; the kernel has a constant of that name for it.
            device: by default that of the first tensor, which can be the host's pinned memory.
        """
        for programs in grid[1:]:
            if programs > MOST_PROGRAMS:
                raise ValueError(
                    f"a grid of {grid} programs: no GPU launches more than 65535 there"
                )
        device = args[0].device if device is None else device
        kinds = []  # one plain loop: this is most of what a launch costs here
        for arg in args:
            if isinstance(arg, Tensor):
                if arg.data_ptr() & 15:
                    raise ValueError("kernels take memory aligned to 16 bytes")
                kinds.append(arg.dtype)
        key = (device.index, warps, stages, *constants.values(), *kinds)
        compiled = self._compiled.get(key)
        if compiled is None:
            version = self.version(args, constants, warps, stages, pdl, registers)
            if device.type == "meta":
                _recording.get().places.setdefault(version, Place(self, key[1:]))
                return
            if knobs.runtime.interpret:
                self._kernel[grid](*args, **constants, num_warps=warps, num_stages=stages)
                return
            compiled = compile_version(version, driver.active.get_current_target())
            self.keep(key, compiled)
        compiled[(*grid, 1, 1)[:3]](*args, *constants.values())

    def keep(self, key: tuple[Any, ...], compiled: Any) -> None:
        """``key``: the index of a device, and that of a `Place`."""
        self._compiled[key] = compiled

    def version(
        self,
        args: tuple[Any, ...],
        constants: dict[str, Any],
        warps: int,
        stages: int,
        pdl: bool,
        registers: int | None,
    ) -> Version:
        """What a launch takes."""
        function, names = self._kernel.fn, self._kernel.arg_names
        # compiled kernels take all by position, so the order of the constants must be the kernel's
        assert tuple(constants) == tuple(names[len(args) :])
        signature = tuple(
            (name, type_name(name, arg, self._kernel))
            for name, arg in zip(names, args, strict=False)
        )
        return Version(
            function.__module__,
            function.__name__,
            signature,
            tuple(constants.items()),
            warps,
            stages,
            pdl,
            registers,
        )
