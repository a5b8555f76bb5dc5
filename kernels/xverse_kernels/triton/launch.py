"""What all launchers share: scratch memory, and the views of weights that kernels read."""

from __future__ import annotations

import functools
from typing import Any

import torch
import triton.language as tl
from torch import Tensor
from triton import knobs

from xverse_kernels.packing import ExpertBlocks, PackedMatrix
from xverse_kernels.triton.tiles import MatrixUnit

COUNTERS = 1 << 16  # to begin with
MOST_PROGRAMS = 65535  # along the second and third axis of a grid


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
    """(weights as the kernel reads them, scales, bits, rows, columns) of a matrix."""
    if isinstance(weight, PackedMatrix):
        flat = weight.data
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
    """(weights as the kernel reads them, scales, bits) of expert blocks."""
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


def compute_capability(device: torch.device) -> int:
    """90 for 9.0; 0 without an NVIDIA GPU."""
    if device.type != "cuda" or torch.version.hip is not None:
        return 0
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def supports_pdl(device: torch.device) -> bool:
    """Whether kernels can begin before the one before them has ended."""
    return compute_capability(device) >= 90


def triton_multiplies(device: torch.device) -> bool:
    """Whether Triton uses the device's matrix instructions; it does not before 8.0."""
    return (
        device.type != "cuda"
        or torch.version.hip is not None
        or torch.cuda.get_device_capability(device) >= (8, 0)
    )


@functools.cache
def matrix_unit(device: torch.device) -> MatrixUnit:
    """What multiplies matrices on a device; without a GPU as on an H100."""
    if device.type != "cuda":
        return "wgmma"
    if torch.version.hip is not None:
        return "wmma"
    major = compute_capability(device) // 10
    if major == 9:
        return "wgmma"
    return "tcgen05" if major in (10, 11) else "mma"


def padded(size: int) -> int:
    """The next power of two."""
    return 1 << (size - 1).bit_length()


def triton_dtype(dtype: torch.dtype) -> Any:
    """Triton's name of a torch dtype."""
    return getattr(tl, str(dtype).removeprefix("torch."))


class Launcher:
    """Launches one kernel, and remembers what was compiled.

    Triton's own launch looks at every argument anew to choose among specialised versions, which
    takes longer than most of these kernels run. Here the version follows from the dtypes and the
    constants alone: integers are not specialised (``do_not_specialize``), and every pointer is
    aligned to 16 bytes.
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
        """
        for programs in grid[1:]:
            if programs > MOST_PROGRAMS:
                raise ValueError(
                    f"a grid of {grid} programs: no GPU launches more than 65535 there"
                )
        device = args[0].device
        key = (
            device.index,
            warps,
            stages,
            *constants.values(),
            *(arg.dtype for arg in args if isinstance(arg, Tensor)),
        )
        for arg in args:
            if isinstance(arg, Tensor) and arg.data_ptr() % 16:
                raise ValueError("kernels take memory aligned to 16 bytes")
        compiled = self._compiled.get(key)
        if compiled is not None:
            compiled[(*grid, 1, 1)[:3]](*args, *constants.values())
            return
        # compiled kernels take all by position, so the order of the constants must be the kernel's
        assert tuple(constants) == tuple(self._kernel.arg_names[len(args) :])
        # AMD's compiler does not know these options
        options: dict[str, Any] = {"launch_pdl": True} if pdl else {}
        if registers and compute_capability(device):
            options["maxnreg"] = registers
        compiled = self._kernel[grid](
            *args, **constants, num_warps=warps, num_stages=stages, **options
        )
        if not knobs.runtime.interpret:
            self._compiled[key] = compiled
