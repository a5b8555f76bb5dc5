"""The described machines that come with the package, found by loose names."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

from xverse_runtime.errors import UsageError
from xverse_runtime.offload.machine import Machine, read_machine

FOLDER = Path(__file__).with_name("machines")
_WORDS = re.compile(r"\d+|[a-z]+")
_FILLERS = {"nvidia", "geforce", "rtx", "gtx", "gb", "gib", "gpu", "desktop"}
_MODEL_DIGITS = 3  # of a model number: 4060, 100


@cache
def known_machines() -> tuple[Machine, ...]:
    """All of them, by name."""
    machines = (read_machine(path) for path in FOLDER.glob("*.toml"))
    return tuple(sorted(machines, key=lambda one: one.name))


def find_machine(name: str) -> Machine:
    """The machine that ``name`` means: ``RTX 4060 8GB``, ``4060ti``, or the path of a TOML file.

    Of several that have all its words, the one with the fewest others: ``4060`` is the plain one.

    Raises:
        UsageError: ``machine.unknown``; for a file what `read_machine` raises.
    """
    if name.lower().endswith(".toml"):
        return read_machine(Path(name).expanduser())
    wanted = _words(name)
    numbered = any(len(word) >= _MODEL_DIGITS and word.isdigit() for word in wanted)
    fitting = [one for one in known_machines() if numbered and wanted <= _words(one.name)]
    if not fitting:
        known = [one.name for one in known_machines()]
        raise UsageError("machine.unknown", name=name, known=known)
    return min(fitting, key=lambda one: len(_words(one.name)))


def _words(name: str) -> frozenset[str]:
    """``RTX 4060 Ti 16GB`` is 4060, ti and 16."""
    return frozenset(_WORDS.findall(name.lower())) - _FILLERS
