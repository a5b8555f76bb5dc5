"""Main memory: how much there is, and how much of it can be had."""

from __future__ import annotations

import os
from pathlib import Path

MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")


def host_memory(meminfo: Path = MEMINFO, cgroup: Path = CGROUP) -> tuple[int, int] | None:
    """Total bytes, and those that can be had without swapping; ``None`` where nobody says.

    A container's limit counts. Pages of files are no use of it: they go when memory is wanted.
    """
    try:
        lines = (line.partition(":") for line in meminfo.read_text(encoding="ascii").splitlines())
        values = {key: int(rest.split()[0]) * 1024 for key, _, rest in lines}
        total, free = values["MemTotal"], values["MemAvailable"]
    except (OSError, KeyError, ValueError, IndexError):
        return _by_sysconf()
    limit = _number(cgroup / "memory.max")
    if limit is not None:
        used = (_number(cgroup / "memory.current") or 0) - _file_pages(cgroup / "memory.stat")
        total, free = min(total, limit), min(free, max(0, limit - used))
    return total, free


def _by_sysconf() -> tuple[int, int] | None:
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return None
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return total, total * 3 // 4  # macOS does not say; it compresses what is not in use


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):  # "max" is no limit
        return None


def _file_pages(path: Path) -> int:
    try:
        lines = path.read_text(encoding="ascii").splitlines()
        return int(next(line.split()[1] for line in lines if line.startswith("file ")))
    except (OSError, ValueError, StopIteration):
        return 0
