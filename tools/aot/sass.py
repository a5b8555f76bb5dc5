"""Reading NVIDIA machine code as `cuobjdump -sass` prints it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

LINE = re.compile(
    r"^\s*/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?(\S+)\s*(.*?);?\s*/\*", re.MULTILINE
)
SCHEDULING = re.compile(r"\s+[&?]")  # older versions print it after the operands
TARGET = re.compile(r"0x([0-9a-f]+)$")
# global to registers; global to shared memory
WIDE_LOAD = re.compile(r"^(LDG\.E|LDGSTS\.E)(\..*)?\.128")
HALF_LOAD = re.compile(r"^LDG\.E(\..*)?\.64")
MATRIX = re.compile(r"^(HMMA|HGMMA|QGMMA|UTC[A-Z]*MMA)\b")
LOCAL = re.compile(r"^(LDL|STL)\b")


@dataclass(frozen=True)
class Instruction:
    address: int
    name: str  # with its modifiers
    operands: str

    def is_load(self, pattern: re.Pattern[str]) -> bool:
        return pattern.match(self.name) is not None


def parse(listing: str) -> list[Instruction]:
    """The instructions of a listing with one function."""
    return [
        Instruction(int(address, 16), name.rstrip(";"), SCHEDULING.split(operands)[0].rstrip(" ;"))
        for address, name, operands in LINE.findall(listing)
    ]


def count(pattern: re.Pattern[str], code: Sequence[Instruction]) -> int:
    return sum(pattern.match(one.name) is not None for one in code)


def matrix_names(code: Sequence[Instruction]) -> tuple[str, ...]:
    """Which matrix instructions there are, without modifiers."""
    return tuple(sorted({match[1] for one in code if (match := MATRIX.match(one.name))}))


def loops(code: Sequence[Instruction]) -> list[list[Instruction]]:
    """What lies between a backward branch and where it leads; the padding that follows the code
    branches to itself and is none."""
    found = []
    for last in code:
        target = TARGET.search(last.operands)
        if last.name.split(".")[0] == "BRA" and target and int(target[1], 16) < last.address:
            first = int(target[1], 16)
            found.append([one for one in code if first <= one.address <= last.address])
    return found


def main_loop(code: Sequence[Instruction]) -> list[Instruction]:
    """The longest of the innermost loops with 128-bit loads, or else with 64-bit ones; empty
    without such a loop."""
    for pattern in (WIDE_LOAD, HALF_LOAD):
        loading = [one for one in loops(code) if any(line.is_load(pattern) for line in one)]
        if loading:
            break
    innermost = [
        one for one in loading if not any(other != one and _within(other, one) for other in loading)
    ]
    return max(innermost, key=len, default=[])


def _within(inner: list[Instruction], outer: list[Instruction]) -> bool:
    return outer[0].address <= inner[0].address and inner[-1].address <= outer[-1].address
