"""The C extension: whether it is there, which instructions it uses, and its threads."""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path
from typing import Any

_missing: str | None = None
native: Any = None
try:
    native = import_module("xverse_kernels.cpu._native")
except ImportError as error:  # not built, or for another machine
    _missing = str(error)


def why_missing() -> str | None:
    """The reason for which the extension cannot be used, if there is one."""
    if _missing is None:
        return None
    return (
        "its C extension is not built here (an install builds it where a C compiler and Python's"
        f" header files are): {_missing}"
    )


def instruction_sets() -> list[str]:
    """What this processor can run of the kernels, the fastest first."""
    return native.names() if native is not None else []


def physical_cores(root: Path = Path("/sys/devices/system/cpu")) -> int:
    """Cores that this process may use; the two threads of one core read memory no faster.

    Where the system does not say how its processors share cores, they count as cores.
    """
    allowed = (
        os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    )
    siblings = set()
    for cpu in allowed:
        try:
            path = root / f"cpu{cpu}" / "topology" / "thread_siblings_list"
            siblings.add(path.read_text(encoding="ascii").strip())
        except OSError:
            siblings.add(str(cpu))
    return max(1, len(siblings))
