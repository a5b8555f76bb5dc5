"""Whether a model fits this machine: weights and KV cache at each precision, against its memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from xverse_cli.models.stores import PRECISIONS
from xverse_runtime.errors import UsageError, XverseError
from xverse_runtime.suitable import most_suitable

if TYPE_CHECKING:
    from xverse_runtime.config import ModelConfig
    from xverse_runtime.store.layout import StoreLayout

LOOK_S = 120
COMFORTABLE = 30.0  # from here on more speed is no reason for a lower precision
MUCH_FASTER = 1.5  # by how much a lower precision has to be faster to be worth telling of
# Python would look for modules in the current folder first; nothing there is to be run.
_APART = (
    "import sys; sys.path = [one for one in sys.path if one];"
    "from xverse_cli.models.machine_fit import main; main()"
)
WORK_BYTES = 2**30  # what computing takes beside weights and cache


@dataclass(frozen=True)
class FitRow:
    """Bytes of weights and of the KV cache at one precision, where they fit, and how fast it will
    be; ``tokens_per_s`` is ``None`` where that was not asked for or it cannot run."""

    precision: str
    weight_bytes: int
    cache_bytes: int
    fits_gpu: bool | None  # None: there is no GPU
    fits_memory: bool
    tokens_per_s: float | None = None

    @property
    def total_bytes(self) -> int:
        return self.weight_bytes + self.cache_bytes + WORK_BYTES


@dataclass(frozen=True)
class MachineFit:
    """The rows, highest precision first, and what they are measured against, in bytes."""

    context: int
    memory_bytes: int
    gpu_bytes: int | None
    gpu_name: str
    rows: tuple[FitRow, ...]

    @property
    def best(self) -> FitRow | None:
        """What `xverse doctor` recommends too: see `most_suitable`. Where speeds are not known, the
        highest precision that fits the GPU, else the memory."""
        known = [row for row in self.rows if row.tokens_per_s]
        if known:
            return most_suitable(known, lambda row: row.tokens_per_s or 0.0)
        on_gpu = [row for row in self.rows if row.fits_gpu]
        in_memory = [row for row in self.rows if row.fits_memory]
        return next(iter(on_gpu or in_memory), None)

    @property
    def faster(self) -> FitRow | None:
        """A precision so much faster than the best that the user may like it better."""
        best = self.best
        if best is None or not best.tokens_per_s or best.tokens_per_s >= COMFORTABLE:
            return None
        worth = best.tokens_per_s * MUCH_FASTER
        rows = [row for row in self.rows if (row.tokens_per_s or 0) >= worth]
        return max(rows, key=lambda row: row.tokens_per_s or 0, default=None)


def machine_fit(
    config_json: bytes, context: int | None, *, rates: bool = False
) -> MachineFit | None:
    """The fit of the model that ``config.json`` describes; ``None`` for one that cannot be run.

    Args:
        config_json: the file's bytes.
        context: tokens; ``None`` is what the model was trained with.
        rates: also predict the speed, which takes a second of measuring.
    """
    import torch

    from xverse_runtime.config import ModelConfig
    from xverse_runtime.kv_cache import KVPool

    try:
        config = ModelConfig.from_dict(json.loads(config_json))
    except (XverseError, ValueError, TypeError, AttributeError):
        return None
    tokens = context or config.trained_context
    gpu_bytes, gpu_name = _gpu()
    memory = memory_bytes()
    predicted = _rates(config, context) if rates else {}
    rows = []
    for precision in PRECISIONS:
        weights = store_bytes(config_json, precision)
        if weights is None:
            continue
        cache = KVPool.bytes_needed(config, tokens, torch.bfloat16)
        needed = weights + cache + WORK_BYTES
        fits_gpu = None if gpu_bytes is None else needed <= gpu_bytes
        fits, rate = needed <= memory, predicted.get(precision)
        rows.append(FitRow(precision, weights, cache, fits_gpu, fits, rate))
    return MachineFit(tokens, memory, gpu_bytes, gpu_name, tuple(rows))


def _rates(config: ModelConfig, context: int | None) -> dict[str, float]:
    """Tokens per second at each precision that can run here, as `xverse doctor` predicts them."""
    import torch

    from xverse_runtime.memory_plan import Wishes, plans_by_precision
    from xverse_runtime.offload import measure

    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    try:
        plans = plans_by_precision(config, measure.measure_machine(device), Wishes(context=context))
    except (XverseError, RuntimeError):  # a broken GPU is told by others
        return {}
    return {name: plan.prediction.tokens_per_s for name, plan in plans.items() if plan}


def machine_fit_apart(
    config_json: bytes, context: int | None, *, rates: bool = False
) -> MachineFit | None:
    """`machine_fit` in a process of its own, unless torch is here already.

    torch takes a quarter of a gigabyte, which a download does not need while it lasts.
    """
    if "torch" in sys.modules:
        return machine_fit(config_json, context, rates=rates)
    command = [sys.executable, "-c", _APART, str(context or 0), *(["rates"] if rates else [])]
    try:
        answer = subprocess.run(
            command, input=config_json, capture_output=True, check=True, timeout=LOOK_S
        )
        found = json.loads(answer.stdout)
    except (OSError, ValueError, subprocess.SubprocessError):
        return None  # a broken torch is no reason not to fetch a model
    if found is None:
        return None
    return MachineFit(**{**found, "rows": tuple(FitRow(**row) for row in found["rows"])})


def packed_precision(config_json: bytes, fit: MachineFit | None) -> tuple[str, float | None]:
    """What ``--precision auto`` packs a model to, and the tokens per second predicted for it.

    Args:
        config_json: the file's bytes, of a model that can be run.
        fit: of that model, with rates; where it knows nothing that fits, the lowest precision that
            the widths allow is taken.

    Raises:
        UsageError: ``store.width``: the widths fit no precision.
    """
    if fit is not None and fit.best is not None:
        return fit.best.precision, fit.best.tokens_per_s
    allowed = [one for one in PRECISIONS if store_bytes(config_json, one) is not None]
    if not allowed:
        _layout(config_json, PRECISIONS[0]).check()  # which says what is wrong
    return allowed[-1], None


def store_bytes(config_json: bytes, precision: str) -> int | None:
    """Bytes of a store at ``precision``; ``None`` where the widths do not allow it."""
    from xverse_runtime.store.shard import shard_bytes

    layout = _layout(config_json, precision)
    with suppress(UsageError):
        layout.check()
        return sum(shard_bytes(file.specs) for file in layout.files())
    return None


def _layout(config_json: bytes, precision: str) -> StoreLayout:
    from xverse_runtime.config import ModelConfig
    from xverse_runtime.store.layout import StoreLayout
    from xverse_runtime.store.precision import PRESETS

    return StoreLayout(ModelConfig.from_dict(json.loads(config_json)), PRESETS[precision])


def memory_bytes() -> int:
    """Main memory of this machine, or what a container may use of it."""
    total = 0
    with suppress(OSError, ValueError, AttributeError):
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if not total and os.name == "nt":
        total = _windows_memory()
    with suppress(OSError, ValueError), open("/sys/fs/cgroup/memory.max", encoding="ascii") as file:
        total = min(total, int(file.read())) or total
    return total


def _windows_memory() -> int:
    import ctypes

    class Status(ctypes.Structure):
        _fields_ = (
            ("length", ctypes.c_ulong),
            ("load", ctypes.c_ulong),
            ("total", ctypes.c_ulonglong),
            ("rest", ctypes.c_ulonglong * 6),
        )

    status = Status(length=ctypes.sizeof(Status))
    ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status))  # type: ignore[attr-defined]
    return int(status.total)


def _gpu() -> tuple[int | None, str]:
    import torch

    if not torch.cuda.is_available():
        return None, ""
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return int(properties.total_memory), str(properties.name)


def main() -> None:
    """`config.json` on standard input, the fit as JSON on standard output."""
    wished, rates = int(sys.argv[1]) or None, "rates" in sys.argv[2:]
    fit = machine_fit(sys.stdin.buffer.read(), wished, rates=rates)
    print(json.dumps(fit and asdict(fit)))
