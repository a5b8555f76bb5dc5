"""The table of all builds in docs/kernels.md."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from tools.aot.budgets import name_of
from tools.aot.targets import TARGETS
from tools.aot.types import Build
from xverse_kernels.triton.versions import Version

BEGIN = "<!-- builds: made by `make aot-table` -->"
END = "<!-- end of builds -->"


def triton_version() -> str:
    return metadata.version("triton")


def describe(launch: Version) -> str:
    """A version of a kernel in words: its weights, its tile, warps and stages."""
    of, name = launch.constant, name_of(launch)
    parts = [name]
    if name == "linear":
        head = of["HAS_NORM"] and launch.types["out_ptr"] == "*fp32"
        parts[0] += " head" if head else " qkv" if of["HAS_NORM"] else " output"
    if launch.bits:
        parts.append(f"int{launch.bits}" if launch.bits <= 8 else "16 bit")
    if "BLOCK_M" in of:
        columns = of["BLOCK_N"] * (2 if name == "grouped_gate_up" else 1)
        sizes = [of["BLOCK_M"], columns, *([of["BLOCK_K"]] if "BLOCK_K" in of else [])]
        stages = f"{launch.stages} stage{'s' * (launch.stages > 1)}"
        parts.append(f"{' × '.join(map(str, sizes))}, {stages}")
    elif "ROWS" in of:
        parts.append(f"{of['ROWS']} × {of['BLOCK']}")
    elif "BLOCK" in of:
        parts.append(f"{of['BLOCK']}")
    if of.get("SPLITS", 1) > 1:
        parts.append(f"{of['SPLITS']} splits")
    if of.get("INT8"):
        parts.append("int8 cache")
    if of.get("TABLES"):
        parts.append(f"{of['TABLES']} tables")
    if of.get("COUNT"):
        parts.append(f"{of['COUNT']} copies")
    return ", ".join((*parts, f"{launch.warps} warp{'s' * (launch.warps > 1)}"))


def cell(build: Build) -> str:
    """Registers, shared memory in KB, instructions."""
    return f"{build.registers} · {build.shared / 1024:.1f} · {build.instructions}"


def rows(builds: Iterable[Build]) -> dict[str, dict[str, str]]:
    """By description and target, in alphabetical order of the kernels."""
    found: dict[str, dict[str, str]] = {}
    for one in builds:
        found.setdefault(describe(one.launch), {})[one.target] = cell(one)
    return dict(sorted(found.items(), key=lambda item: item[0].split(",")[0]))


def render(builds: Iterable[Build]) -> str:
    lines = [
        f"triton {triton_version()}",
        "",
        f"| kernel | {' | '.join(TARGETS)} |",
        f"|---{'|---' * len(TARGETS)}|",
    ]
    for name, cells in rows(builds).items():
        lines.append(f"| {name} | {' | '.join(cells.get(one, '') for one in TARGETS)} |")
    return "\n".join(lines)


def read(document: str) -> tuple[str, dict[str, dict[str, str]]]:
    """(version of triton, rows) of the table in a document."""
    _, _, rest = document.partition(BEGIN)
    version, _, *lines = rest.partition(END)[0].strip().splitlines()
    table = [[one.strip() for one in line.strip("|").split("|")] for line in lines]
    names = table[0][1:]
    found = {
        row[0]: {name: text for name, text in zip(names, row[1:], strict=True) if text}
        for row in table[2:]
    }
    return version.removeprefix("triton "), found


def renew(path: Path, builds: Iterable[Build]) -> None:
    text = path.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    path.write_text(f"{before}{BEGIN}\n{render(builds)}\n{END}{after}", encoding="utf-8")
