"""Every kernel compiles for every target within its budgets: see tools/aot.

The compiler runs in processes of their own: whether triton interprets kernels is settled when they
are imported, and other tests choose that it does.
"""

from __future__ import annotations

import importlib.util
import os
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tools.aot import budgets, sass, table
from tools.aot.targets import TARGETS
from tools.aot.types import Build
from xverse_kernels.triton import tiles
from xverse_kernels.triton.versions import Version

ROOT = Path(__file__).resolve().parents[2]
QUICK = ("sm_86", "sm_90")
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is for Linux"
)


def compiled(folder: Path, *options: str) -> list[Build]:
    """The builds that `python -m tools.aot` makes, whatever it says of them."""
    environment = {name: text for name, text in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_HOME"] = str(folder)
    paths = [ROOT, ROOT / "runtime", ROOT / "kernels", environment.get("PYTHONPATH", "")]
    # a triton that PYTHONPATH brings comes before the installed one, the checkout after it
    environment["PYTHONPATH"] = os.pathsep.join(map(str, [paths[-1], *paths[:-1]])).strip(":")
    saved = folder / "builds"
    command = [sys.executable, "-m", "tools.aot", "--save", str(saved), *options]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert saved.exists(), result.stderr
    return pickle.loads(saved.read_bytes())


@pytest.fixture(scope="session")
def few(tmp_path_factory: pytest.TempPathFactory) -> list[Build]:
    """One tile of each kernel."""
    return compiled(tmp_path_factory.mktemp("aot"), "--quick", "--targets", ",".join(QUICK))


def complaints(builds: list[Build]) -> list[str]:
    return [
        f"{one.target} {table.describe(one.launch)}: {text}"
        for one in builds
        for text in budgets.violations(one)
    ]


def test_one_tile_of_every_kernel(few: list[Build]) -> None:
    assert {one.target for one in few} == set(QUICK)
    assert complaints(few) == []


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_tile_on_every_target(tmp_path: Path) -> None:
    builds = compiled(tmp_path)
    assert complaints(builds) == []
    version, rows = table.read(document())
    if version == table.triton_version():
        assert rows == table.rows(builds), "docs/kernels.md: make aot-table renews it"


def test_document_shows_these_builds(few: list[Build]) -> None:
    version, rows = table.read(document())
    if version != table.triton_version():
        pytest.skip(f"the table is of triton {version}")
    for one in few:
        name = table.describe(one.launch)
        shown = rows.get(name, {}).get(one.target)
        assert shown == table.cell(one), f"{name}: make aot-table renews it"


def document() -> str:
    return (ROOT / "docs" / "kernels.md").read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def recorded() -> dict[str, list[Version]]:
    """What is compiled for each target; nothing is compiled for this."""
    probe = (
        "import pickle, sys; from tools.aot.matrix import launches;"
        "from tools.aot.targets import TARGETS;"
        "sys.stdout.buffer.write(pickle.dumps({n: launches(t) for n, t in TARGETS.items()}))"
    )
    environment = {name: text for name, text in os.environ.items() if name != "TRITON_INTERPRET"}
    result = subprocess.run(
        [sys.executable, "-c", probe], cwd=ROOT, env=environment, capture_output=True
    )
    assert result.returncode == 0, result.stderr.decode()
    return pickle.loads(result.stdout)


def test_every_kernel_is_recorded(recorded: dict[str, list[Version]]) -> None:
    sources = (ROOT / "kernels" / "xverse_kernels" / "triton").glob("*_kernels.py")
    text = "".join(path.read_text(encoding="utf-8") for path in sources)
    defined = {line[4:].split("(")[0] for line in text.splitlines() if line.startswith("def ")}
    kernels = {name for name in defined if name.endswith("_kernel")}
    assert len(kernels) > 10
    assert {one.kernel for one in recorded["sm_90"]} == kernels


@pytest.mark.parametrize("target", [name for name in TARGETS if name != "sm_75"])
def test_every_tile_is_recorded(target: str, recorded: dict[str, list[Version]]) -> None:
    found = {
        (one.bits, of["BLOCK_M"], of["BLOCK_N"], of["BLOCK_K"], one.warps, one.stages)
        for one in recorded[target]
        if one.kernel == "grouped_down_kernel" and (of := one.constant)
    }
    choices = tiles.GROUPED[TARGETS[target].unit].items()
    known = {
        (bits, one.m, one.n, one.k, one.warps, one.stages)
        for bits, choice in choices
        for _, one in choice
    }
    assert found == known
    gemv = {
        (one.kernel, one.bits, of["ROWS"], of["BLOCK"], one.warps, of.get("SPLITS", 1))
        for one in recorded[target]
        if "ROWS" in (of := one.constant)
    }
    kernels = {
        "linear": tiles.LINEAR,
        "gate_up": tiles.GATE_UP,
        "down": tiles.DOWN,
        "down_parts": tiles.DOWN_PARTS,
    }
    known_gemv = {
        (f"{name}_kernel", bits, one.rows, one.block, one.warps, one.splits)
        for name, table_ in [*kernels.items(), ("linear", tiles.LINEAR_FEW_ROWS)]
        for bits, one in table_.items()
        if bits <= 16  # fp32 models do not run on these kernels
    }
    assert gemv == known_gemv
    attention = {
        (one.constant["BLOCK"], one.warps, one.constant["SPLITS"])
        for one in recorded[target]
        if one.kernel == "decode_attention_kernel"
    }
    capability = TARGETS[target].capability
    assert {one.registers for one in recorded[target] if one.registers} == {
        tiles.attention_registers(capability)
    }
    assert attention == {tiles.attention_tile(1 << n) for n in range(20)}


def test_dependent_launch_is_for_those_that_have_it(recorded: dict[str, list[Version]]) -> None:
    with_pdl = {name for name, all_ in recorded.items() if any(one.pdl for one in all_)}
    assert with_pdl == {"sm_90", "sm_100", "sm_120"}


def test_triton_is_not_imported_here() -> None:
    """Its first import settles for all tests of a process whether kernels are interpreted."""
    probe = "import sys, tests.kernels.test_aot; print(*sys.modules)"
    command = [sys.executable, "-c", probe]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = result.stdout.split()
    assert "tests.kernels.test_aot" in loaded
    assert "triton" not in loaded


def test_numbers_are_not_specialised() -> None:
    """A launcher keeps one version for all values, so triton must not make several."""
    from xverse_kernels.triton.launch import UnspecialisedError, type_name

    class Kernel:
        __name__ = "some_kernel"
        do_not_specialize = ("known",)

    assert type_name("known", 3, Kernel) == "i32"
    with pytest.raises(UnspecialisedError, match="other is missing"):
        type_name("other", 3, Kernel)


@pytest.mark.parametrize("name", TARGETS)
def test_devices_are_recognised(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    target = TARGETS[name]
    monkeypatch.setattr(torch.version, "hip", None if target.is_cuda else "6.4")
    capability = divmod(target.capability, 10) if target.is_cuda else (11, 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    from xverse_kernels.triton import launch  # after the modules that ask for the interpreter

    device = torch.device("cuda", 0)
    assert launch.device_abilities.__wrapped__(device) == target.abilities


GROUPED = Version(
    "m", "grouped_down_kernel", (), (("BITS", 16), ("BLOCK_M", 64), ("BLOCK_N", 128),
    ("BLOCK_K", 64), ("DOT", "bf16")), 4, 4, False,
)  # fmt: skip
GOOD = Build(
    "sm_90", GROUPED, registers=128, shared=99328, instructions=640, wide_loads=48, matrix=4,
    matrix_names=("HGMMA",), loop=120, loop_wide_loads=12,
)  # fmt: skip
PACKED = Version(
    "m", "gate_up_kernel", (), (("BITS", 4), ("ROWS", 16), ("BLOCK", 32), ("PDL", True)), 4, 3, True
)
GOOD_PACKED = Build(
    "sm_90", PACKED, registers=56, instructions=464, wide_loads=6, loop=216, loop_wide_loads=3
)


def test_good_builds_are_within_budget() -> None:
    assert complaints([GOOD, GOOD_PACKED]) == []
    assert budgets.instructions_per_weight(GOOD_PACKED) == 216 / 64
    # unrolled twice by the compiler
    twice = replace(GOOD_PACKED, loop=432, loop_wide_loads=6)
    assert budgets.instructions_per_weight(twice) == 216 / 64


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"error": "no"}, "does not compile"),
        ({"stack": 8}, "spills"),
        ({"local_accesses": 2}, "spills"),
        ({"shared": 227 * 1024 + 1}, "shared memory"),
        ({"shared": 120 * 1024}, "1 programs at a time, planned were 2"),
        ({"target": "sm_86", "shared": 100 * 1024}, "the device has 101376"),
        ({"registers": 201}, "registers"),
        ({"tensor_memory": 1024}, "tensor memory"),
        ({"loop_wide_loads": 11}, "11 loads of 128 bits"),
        ({"matrix": 0, "matrix_names": ()}, "no matrix instructions"),
        ({"matrix_names": ("HMMA",)}, "HMMA"),
    ],
)
def test_budgets_can_be_broken(change: dict[str, object], complaint: str) -> None:
    assert any(complaint in text for text in complaints([replace(GOOD, **change)]))


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"loop": 231}, "3.61 instructions a weight"),
        ({"loop": 0, "loop_wide_loads": 0}, "0.00 instructions a weight"),
        ({"target": "sm_86"}, "which the device does not have"),
        ({"launch": replace(PACKED, pdl=False)}, "launched with pdl=False"),
    ],
)
def test_packed_budgets_can_be_broken(change: dict[str, object], complaint: str) -> None:
    assert any(complaint in text for text in complaints([replace(GOOD_PACKED, **change)]))


ATTENTION = Version(
    "m", "decode_attention_kernel", (), (("DIM", 80), ("BLOCK", 32), ("INT8", True)), 2, 3, False
)
GOOD_ATTENTION = Build(
    "sm_90", ATTENTION, registers=128, instructions=2600, loop=323, loop_half_loads=10
)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({}, ""),
        ({"registers": 145}, "145 registers"),
        ({"loop": 329}, "4.11 instructions an element"),
        ({"loop_half_loads": 9}, "0.00 instructions an element"),
    ],
)
def test_budgets_of_attention(change: dict[str, object], complaint: str) -> None:
    found = complaints([replace(GOOD_ATTENTION, **change)])
    assert any(complaint in text for text in found) if complaint else found == []


LISTING = """
        /*0000*/                   LDC R1, c[0x0][0x28] ;            /* 0x00000a00ff017b82 */
                                                                     /* 0x000fe20000000800 */
        /*0010*/                   LDG.E.128 R4, desc[UR4][R2.64] ;  /* 0x0000000402047981 */
        /*0020*/              @!P0 STL [R1], R4 ;                    /* 0x0000000401007387 */
        /*0030*/                   LDG.E.U16 R8, desc[UR4][R2.64] ;  /* 0x0000000402087981 */
        /*0040*/               @P1 BRA 0x30 ;                        /* 0x0000000000001947 */
        /*0050*/                   LDGSTS.E.BYPASS.128 [R8], desc[UR4][R2.64] ; /* 0x00000402 */
        /*0060*/                   HMMA.16816.F32.BF16 R8, R4, R2, R8 ; /* 0x0000000204087 */
        /*0070*/              @!P2 BRA 0x50       &req={0} ?trans5;  /* 0x0000000000002947 */
        /*0080*/                   BRA 0x10 ;                        /* 0x0000000000007947 */
        /*0090*/                   BRA 0x90;                         /* 0x0000000000007947 */
"""


def test_reading_machine_code() -> None:
    code = sass.parse(LISTING)
    assert [one.address for one in code] == list(range(0, 0xA0, 0x10))
    assert sass.count(sass.WIDE_LOAD, code) == 2
    assert sass.count(sass.LOCAL, code) == 1
    assert sass.matrix_names(code) == ("HMMA",)
    spans = [(loop[0].address, loop[-1].address) for loop in sass.loops(code)]
    assert spans == [(0x30, 0x40), (0x50, 0x70), (0x10, 0x80)]
    assert [one.address for one in sass.main_loop(code)] == [0x50, 0x60, 0x70]


def test_interpreter_is_refused() -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "tools.aot"]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 2
    assert "TRITON_INTERPRET" in result.stderr
