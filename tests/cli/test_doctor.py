"""`xverse doctor`: this machine and described ones, plans, one command, before any download."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.cli.conftest import Cli
from tests.cli.models_support import add_golden, cache
from tests.cli.pull_support import REPO
from xverse_cli.doctor.advice import KNOWN_MODELS, system_notes
from xverse_cli.doctor.system import Gpu, SystemFacts, look_at_system
from xverse_cli.messages import worded_in
from xverse_cli.models.stores import stores_dir
from xverse_cli.settings import DEFAULT_MODEL
from xverse_runtime.config import ModelConfig
from xverse_runtime.memory_plan import Wishes, plan_memory
from xverse_runtime.offload import measure
from xverse_runtime.offload.machine import GIB, Machine
from xverse_runtime.offload.machines import FOLDER, find_machine
from xverse_runtime.store.synthetic import A4_2B

__all__ = ["cache"]

HOST = replace(find_machine("4060"), name="test", gpu="", vram_total=0, vram_free=0)


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measuring has tests of its own; here it would only take time."""

    def measured(device: torch.device) -> Machine:
        return HOST if device.type == "cpu" else find_machine("4060")

    monkeypatch.setattr(measure, "measure_machine", measured)


def test_a_described_gpu_before_any_download(cli: Cli, cache: Path) -> None:
    arguments = ("--model", DEFAULT_MODEL, "--gpu", "RTX 4060 8GB", "--context", "4096")
    result = cli("doctor", *arguments, "--kv", "bf16")
    assert (result.code, result.stderr) == (0, "")
    shown = result.stdout.decode()
    assert "Described machine: RTX 4060 8GB" in shown
    assert "19.7 of 64 experts a layer on the GPU" in shown
    assert [line.split()[0] for line in shown.splitlines() if line.startswith(("bf", "int"))] == [
        "bf16",
        "int8",
        "int4",
    ]
    assert "Recommended: int8, 7.7 of 64 experts a layer on the GPU, " in shown
    assert f"\n  xverse pull {DEFAULT_MODEL} --precision int8 --delete-source\n" in shown
    assert "Kernels" not in shown  # those are this machine's
    # A cache in int8 leaves room for more experts; left to itself, the plan takes it.
    for wished in ((), ("--kv", "int8")):
        assert "22.4 of 64 experts a layer" in cli("doctor", *arguments, *wished).stdout.decode()


def test_a_gpu_that_holds_the_model_is_recommended_as_it_is(cli: Cli, cache: Path) -> None:
    arguments = ("--model", DEFAULT_MODEL, "--gpu", "4090", "--precision", "int4")
    shown = cli("doctor", *arguments).stdout.decode()
    assert "Recommended: int4, all on the GPU, " in shown
    told = cli("doctor", *arguments, "--json").json
    assert (told["chosen"], told["plans"]["int4"]["experts_resident"]) == ("int4", True)


def test_the_same_as_json(cli: Cli, cache: Path) -> None:
    arguments = ("--model", DEFAULT_MODEL, "--gpu", "4060", "--context", "4096", "--json")
    told = cli("doctor", *arguments, "--precision", "int4").json
    plan = plan_memory(
        ModelConfig.from_dict(A4_2B),
        find_machine("4060"),
        Wishes(precision="int4", context=4096),
    )
    found = told["plans"]["int4"]
    assert (told["described"], told["system"], told["disk"]) == (True, None, None)
    assert told["chosen"] == "int4"
    assert told["command"] == f"xverse pull {DEFAULT_MODEL} --precision int4 --delete-source"
    assert found["expert_slots"] == plan.placement.expert_slots
    assert found["gpu_bytes"] == plan.placement.gpu <= found["gpu_budget_bytes"]
    assert found["prediction"]["tokens_per_s"] == plan.prediction.tokens_per_s
    assert set(told["plans"]) == {"bf16", "int8", "int4"}
    assert told["machine"]["vram_bandwidth"] == 250e9


def test_this_machine(cli: Cli, cache: Path) -> None:
    result = cli("doctor", "--model", DEFAULT_MODEL)
    assert (result.code, result.stderr) == (0, "")
    shown = result.stdout.decode()
    assert f"torch {torch.__version__}" in shown
    rows = {line.split("  ")[0]: line for line in shown.splitlines()}
    assert "usable" in rows["Kernels reference"]
    assert "not usable" in rows["Kernels triton"]
    assert "GB/s, 8 cores" in rows["Experts on the CPU"]
    assert "free for models in" in rows["Disk"]
    told = cli("doctor", "--model", DEFAULT_MODEL, "--json").json
    backends = {one["name"]: one["reason"] for one in told["system"]["backends"]}
    assert backends["reference"] is None
    assert "GPU" in backends["triton"]
    assert told["system"]["no_gpu"]
    assert told["plans"]["int4"]["device"] == "cpu"


def test_a_gpu_is_told_with_driver_and_capability(
    cli: Cli, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts, _ = look_at_system()

    def with_gpu() -> tuple[SystemFacts, torch.device]:
        gpu = Gpu("NVIDIA GeForce RTX 4060", "8.9", "580.65")
        return replace(facts, gpu=gpu, no_gpu=""), torch.device("cuda", 0)

    monkeypatch.setattr("xverse_cli.doctor.system.look_at_system", with_gpu)
    shown = cli("doctor", "--model", DEFAULT_MODEL).stdout.decode()
    assert "NVIDIA GeForce RTX 4060, driver 580.65, compute capability 8.9" in shown
    assert "7.8 GiB, 7.3 GiB free" in shown


def test_the_command_goes_on_from_what_is_here(cli: Cli, cache: Path, golden: Path) -> None:
    def command(*arguments: str) -> str:
        return str(cli("doctor", "--json", *arguments).json["command"])

    add_golden(golden)
    int8 = ("--model", REPO, "--precision", "int8")
    assert command(*int8) == f"xverse convert {REPO} --precision int8"
    assert cli("convert", REPO, "--precision", "int8").code == 0
    assert command(*int8) == f"xverse chat --model {REPO} --precision int8"
    assert command("--model", REPO, "--precision", "bf16", "--context", "50") == (
        f"xverse chat --model {REPO} --precision bf16 --context 50"
    )
    assert command("--model", "demo") == "xverse chat --model demo"
    (store,) = stores_dir().glob("*-int8")
    own = str(shutil.copytree(store, cache / "own"))
    assert command("--model", own) == f"xverse chat --model {own} --precision int8"
    assert set(cli("doctor", "--json", "--model", own).json["plans"]) == {"int8"}


def test_what_cannot_run_is_told_with_the_nearest_plan(cli: Cli, tmp_path: Path) -> None:
    small = tmp_path / "small.toml"
    text = (FOLDER / "rtx-4060-8gb.toml").read_text(encoding="utf-8")
    small.write_text(text.replace("vram_free_gib = 7.3", "vram_free_gib = 2.6"), encoding="utf-8")
    arguments = ("doctor", "--model", DEFAULT_MODEL, "--gpu", str(small), "--device", "cuda")
    result = cli(*arguments, "--context", "8192")
    assert result.code == 5
    assert result.stdout.decode().count("does not fit") == 3
    assert "precision auto and device cuda does not fit" in result.stderr
    assert "The nearest that fits: --device cuda --precision int4 --context 3584" in result.stderr
    capped = cli(*arguments[:3], "--gpu", "4060", "--gpu-memory", "2.6GiB", "--device", "cuda")
    assert "does not fit" in capped.stdout.decode()
    refusal = json.loads(cli(*arguments, "--context", "8192", "--json").stdout)["refusal"]
    assert refusal["code"] == "plan.impossible"


def test_models_that_are_neither_here_nor_known(cli: Cli, cache: Path) -> None:
    assert cli("doctor", "--model", "xverse/XVERSE-MoE-A36B").code == 3
    assert cli("doctor", "--model", "./nothing").code == 3
    for model in KNOWN_MODELS:
        assert cli("doctor", "--model", model, "--gpu", "3060").code == 0


def test_unknown_machines_and_bad_files(cli: Cli, tmp_path: Path) -> None:
    result = cli("doctor", "--model", "demo", "--gpu", "Voodoo 3")
    assert result.code == 2
    assert "RTX 4060 8GB" in result.stderr
    bad = tmp_path / "bad.toml"
    bad.write_text("name = 3", encoding="utf-8")
    assert cli("doctor", "--model", "demo", "--gpu", str(bad)).code == 2


def notes(kind: str, host: Machine) -> str:
    wishes = Wishes(precision="int4", device="cpu", context=2048)
    plan = plan_memory(ModelConfig.from_dict(A4_2B), HOST, wishes)
    return "\n".join(system_notes(plan, host.host_total, kind))


def test_advice_for_other_systems() -> None:
    windows = notes("windows", replace(HOST, host_total=32 * GIB))
    assert "PyPI has no CUDA" in windows
    assert "wsl --install" in windows
    assert "memory=28GB" in windows
    assert "14.3 GiB" in windows
    mac = notes("mac", HOST)
    assert "processor" in mac
    assert "tokens/s" in mac
    assert notes("linux", HOST) == ""
    assert notes("wsl", HOST) == ""
    assert ".wslconfig" in notes("wsl", replace(HOST, host_total=8 * GIB))


def test_a_described_machine_needs_no_torch_device(repository: Path) -> None:
    """Nothing is measured or asked of a driver for it."""
    code = (
        "import torch\n"
        "def refuse(*_): raise AssertionError\n"
        "torch.cuda.is_available = refuse\n"
        "from xverse_cli.app import run\n"
        f"assert run(['doctor', '--gpu', '4060', '-m', {DEFAULT_MODEL!r}]) == 0"
    )
    paths: list[Any] = [str(repository / one) for one in (".", "runtime", "kernels")]
    whole = f"import sys; sys.path[:0] = {paths}\n{code}"
    done = subprocess.run([sys.executable, "-c", whole], capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr.decode()


def test_the_cache_of_each_plan_and_the_faster_choice_are_shown(cli: Cli, cache: Path) -> None:
    arguments = ("--model", DEFAULT_MODEL, "--gpu", "RTX 4060 8GB")
    shown = cli("doctor", *arguments).stdout.decode()
    rows = [line.split() for line in shown.splitlines() if line.startswith(("bf", "int"))]
    assert [row[:2] for row in rows] == [["bf16", "int8"], ["int8", "int8"], ["int4", "int8"]]
    assert "Or, faster: int4, " in shown
    assert f"\n  xverse pull {DEFAULT_MODEL} --precision int4 --delete-source\n" in shown
    told = cli("doctor", *arguments, "--json").json
    assert (told["chosen"], told["faster"]) == ("int8", "int4")
    assert "faster" not in cli("doctor", *arguments, "--precision", "int8").stdout.decode()
    fast = cli("doctor", "--model", DEFAULT_MODEL, "--gpu", "4090", "--json").json
    assert fast["faster"] is None  # it is at reading speed many times over


def test_on_a_machine_without_numpy_torch_says_nothing_about_it() -> None:
    # In the user's own environment numpy is absent; here it is, as a helper of the tests.
    program = "import sys; sys.modules['numpy'] = None; from xverse_cli.main import main; main()"
    told = subprocess.run(
        [sys.executable, "-c", program, "doctor", "--gpu", "4060"],
        capture_output=True,
        encoding="utf-8",
    )
    assert told.returncode == 0
    assert told.stderr == ""


def test_the_plans_columns_fit_a_terminal_of_80() -> None:
    from xverse_cli.doctor.report import heading
    from xverse_cli.render.columns import columns

    # The widest cell that a column can hold, without the place, which then has its own line.
    cells = ("precision", "bf16", "131072", "100.0 GiB", "100.0 GiB", "1234", "100.0 s", "100.0 s")
    for language in ("en", "zh"):
        with worded_in(language):
            head = heading()[:-1]
        widths = [max(columns(a), columns(b)) for a, b in zip(head, cells, strict=True)]
        assert sum(widths) + 2 * (len(widths) - 1) <= 80, language


@pytest.mark.parametrize("language", ["en", "zh"])
def test_facts_keep_within_a_terminal_of_80(
    cli: Cli, cache: Path, language: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from xverse_cli.render import live
    from xverse_cli.render.columns import columns

    monkeypatch.setattr(live, "screen_size", lambda stream: (80, 24))
    env = {"XVERSE_LANG": language}
    shown = cli("doctor", "--model", DEFAULT_MODEL, terminal="o", env=env).stdout.decode()
    piped = cli("doctor", "--model", DEFAULT_MODEL, env=env).stdout.decode()
    place = str(stores_dir())
    facts, _, rest = shown.partition("\n\n")
    for line in facts.splitlines():
        assert columns(line) <= 80 or place in line, line
    for line in rest.splitlines():
        assert columns(line) <= 80, line
    # What was broken is whole once the lines are put together again: no word was cut.
    assert facts.split() == piped.partition("\n\n")[0].split() or language == "zh"
    assert place in facts


def test_the_disk_is_compared_with_what_is_recommended(
    cli: Cli, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recommended = ("doctor", "--model", DEFAULT_MODEL)
    needs = "to fetch: 48.0 GiB, packed as it comes to 14.3 GiB"
    for free, said in (
        (30 * GIB, f"{needs}; 30.0 GiB of disk are free"),
        (9 * GIB, f"{needs}; too much for the disk, which has 9.0 GiB free"),
    ):
        monkeypatch.setattr("xverse_cli.models.pull_plan.free_bytes", lambda place, now=free: now)
        assert said in cli(*recommended).stdout.decode()
    told = cli(*recommended, "--json").json
    assert 51e9 < told["fetch_bytes"] < 52e9
    assert 15e9 < told["store_bytes"] < 16e9
    assert "to fetch" not in cli("doctor", "--model", "demo").stdout.decode()


def test_whose_memory_is_meant_is_said(cli: Cli, cache: Path) -> None:
    by_name = cli("doctor", "--model", DEFAULT_MODEL, "--gpu", "4060").stdout.decode()
    assert "whatever this one has" in by_name
    file = next(FOLDER.glob("*4060*.toml"))
    by_file = cli("doctor", "--model", DEFAULT_MODEL, "--gpu", str(file)).stdout.decode()
    assert "whatever" not in by_file
