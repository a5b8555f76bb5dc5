"""How much memory there is, by what Linux writes and by a container's limit."""

from __future__ import annotations

from pathlib import Path

import pytest

from xverse_runtime.host_memory import host_memory

MIB = 2**20


@pytest.fixture
def meminfo(tmp_path: Path) -> Path:
    path = tmp_path / "meminfo"
    path.write_text("MemTotal: 8192 kB\nMemFree: 1024 kB\nMemAvailable: 4096 kB\n")
    return path


def test_what_linux_says(meminfo: Path, tmp_path: Path) -> None:
    assert host_memory(meminfo, tmp_path) == (8 * MIB, 4 * MIB)
    (tmp_path / "memory.max").write_text("max\n")
    assert host_memory(meminfo, tmp_path) == (8 * MIB, 4 * MIB)


def test_a_containers_limit_counts_without_its_pages_of_files(
    meminfo: Path, tmp_path: Path
) -> None:
    (tmp_path / "memory.max").write_text(f"{3 * MIB}\n")
    (tmp_path / "memory.current").write_text(f"{2 * MIB}\n")
    assert host_memory(meminfo, tmp_path) == (3 * MIB, MIB)
    (tmp_path / "memory.stat").write_text(f"anon {MIB}\nfile {MIB}\nfile_mapped 7\n")
    assert host_memory(meminfo, tmp_path) == (3 * MIB, 2 * MIB)
    (tmp_path / "memory.current").write_text(f"{9 * MIB}\n")
    assert host_memory(meminfo, tmp_path) == (3 * MIB, 0)


def test_another_system_or_nonsense_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "nonsense").write_text("MemTotal: many\n")
    for name in ("nonsense", "missing"):
        told = host_memory(tmp_path / name, tmp_path)
        assert told is None or 0 < told[1] <= told[0]
