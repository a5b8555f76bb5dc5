"""`xverse bench --simulate`: any machine, no weights."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.cli.conftest import Cli, memory_stream, written
from tests.cli.models_support import cache
from xverse_cli.app import run
from xverse_cli.host import Host
from xverse_cli.settings import DEFAULT_MODEL
from xverse_cli.streams import Streams
from xverse_runtime.config import ModelConfig
from xverse_runtime.offload import simulator_compare
from xverse_runtime.offload.simulator_compare import CASES
from xverse_runtime.offload.trace_file import TraceReader

__all__ = ["cache"]

SIMULATE = ("bench", "--simulate", "--model", DEFAULT_MODEL)
EIGHT_GB = "RTX 4060 8GB"
QUICK = ("--new-tokens", "16", "--prompt-tokens", "64", "--precision", "int4")


@pytest.fixture
def little_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of what is asked and shown, whatever the figures."""
    monkeypatch.setattr(simulator_compare, "WARM_UP", 16)


def test_doctor_and_simulator_plan_alike(cli: Cli, cache: Path, little_warm_up: None) -> None:
    """What is promised for an 8 GB card, as the program prints it."""
    doctor = cli("doctor", "--model", DEFAULT_MODEL, "--gpu", EIGHT_GB, "--json").json
    told = cli(*SIMULATE, "--machine", EIGHT_GB, *QUICK, "--json").json
    planned = doctor["plans"]["int4"]
    assert told["expert_slots"] == planned["expert_slots"]
    assert told["prediction"]["tokens_per_s"] == planned["prediction"]["tokens_per_s"]
    assert [(one["policy"], one["way"]) for one in told["outcomes"]] == [*CASES]
    assert CASES[0] == ("score window", "both")  # the runtime's own


@pytest.mark.slow
def test_the_simulator_confirms_what_doctor_promises(cli: Cli, cache: Path) -> None:
    options = ("--machine", EIGHT_GB, "--precision", "int4", "--new-tokens", "100", "--json")
    told = cli(*SIMULATE, *options).json
    adopted = told["outcomes"][0]
    rate = told["prediction"]["tokens_per_s"]
    assert adopted["tokens_per_s"] == pytest.approx(rate, rel=0.15)
    rates = {(one["policy"], one["way"]): one["tokens_per_s"] for one in told["outcomes"]}
    assert adopted["tokens_per_s"] > rates["lru", "both"]
    assert rates["belady", "both"] == max(rates.values())


def test_wishes_about_memory_reach_the_plan(cli: Cli, cache: Path, little_warm_up: None) -> None:
    options = (*SIMULATE, "--machine", "4060", "--context", "4096", *QUICK, "--json")
    slots = {kv: cli(*options, "--kv", kv).json["expert_slots"] for kv in ("bf16", "int8")}
    assert slots["bf16"] < slots["int8"]
    capped = cli(*options, "--kv", "int8", env={"XVERSE_GPU_MEMORY": "5GiB"}).json
    assert capped["expert_slots"] < slots["int8"]


def test_a_table_and_a_chart(cli: Cli, cache: Path, little_warm_up: None) -> None:
    result = cli(*SIMULATE, "--machine", "4060", "--slots", "6", *QUICK)
    assert (result.code, result.stderr) == (0, "")
    shown = result.stdout.decode()
    assert "6.0 of 64 experts a layer" in shown
    table = [re.split(r"  +", line) for line in shown.splitlines() if line.startswith("score")]
    assert len([row for row in table if len(row) == 9]) == 4
    bars = {line.split("  ")[0]: line.count("#") for line in shown.splitlines() if "#" in line}
    rates = {
        line.split("  ")[0]: float(line.split()[-1]) for line in shown.splitlines() if "#" in line
    }
    assert len(bars) == len(CASES)
    assert max(bars, key=lambda one: bars[one]) == max(rates, key=lambda one: rates[one])
    assert "A prompt of 64 tokens" in shown


def test_a_terminal_gets_colours(cache: Path, little_warm_up: None) -> None:
    streams = Streams(memory_stream(), memory_stream(terminal=True), memory_stream())
    argv = ["bench", "--simulate", "--machine", "3060", "--slots", "20", *QUICK]
    assert run(argv, Host(streams, {})) == 0
    shown = written(streams.stdout)
    assert b"score window" in shown
    assert b"#" not in shown


def test_where_all_fits_nothing_is_compared(cli: Cli, cache: Path) -> None:
    told = cli(*SIMULATE, "--machine", "4090", *QUICK, "--json").json
    assert [one["policy"] for one in told["outcomes"]] == ["all resident"]
    only = told["outcomes"][0]
    assert only["tokens_per_s"] == pytest.approx(told["prediction"]["tokens_per_s"], rel=0.01)
    assert (only["to_gpu_bytes"], only["waits_s"]) == (0, {})


def test_a_recorded_trace(cli: Cli, tmp_path: Path) -> None:
    streams = Streams(memory_stream(), memory_stream(), memory_stream())
    trace = str(tmp_path / "trace")
    argv = ["generate", "-m", "demo", "--device", "cpu", "--max-tokens", "40", "--seed", "1"]
    assert run([*argv, "--record-routing", trace, "tell me"], Host(streams, {})) == 0
    header = TraceReader(Path(trace)).header
    options = ("--machine", "4060", "--slots", str(header.experts // 2), "--routing", trace)
    told = cli("bench", "--simulate", "-m", "demo", *options, "--json").json
    assert told["routing"] == trace
    assert told["outcomes"][0]["uses"] > 0
    other = cli(*SIMULATE, "--machine", "4060", "--routing", trace)
    assert other.code == 2
    assert "another kind of model" in other.stderr


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--machine", "4060", "--slots", "65"], "64 experts"),
        (["--machine", "9999"], "No machine is known"),
        (["--machine", "4060", "--threads", "3"], "--threads is for measuring"),
        (["--machine", "4060", "--rounds", "3"], "--rounds is for measuring"),
        (["--machine", "4060", "--device", "cpu"], "--device cpu is for measuring"),
        (["--machine", "4060", "--synthetic", "a4.2b"], "--synthetic is for measuring"),
        (["--machine", "4060", "--routing", "/nowhere"], "cannot be read"),
        (["--machine", "4060", "--slots", "-1"], "not a whole number"),
    ],
)
def test_what_makes_no_sense_is_refused(
    cli: Cli, cache: Path, options: list[str], words: str
) -> None:
    result = cli(*SIMULATE, *options)
    assert result.code == 2
    assert words in result.stderr
    assert result.stdout == b""


@pytest.mark.parametrize("option", ["--machine", "--slots", "--routing"])
def test_options_of_the_simulation_alone_are_refused(cli: Cli, option: str) -> None:
    result = cli("bench", "-m", "demo", option, "4")
    assert result.code == 2
    assert f"{option} is for --simulate" in result.stderr


def test_a_host_without_a_gpu_is_told_what_to_do(cli: Cli, tmp_path: Path, cache: Path) -> None:
    file = tmp_path / "host.toml"
    file.write_text(
        'name = "plain host"\nhost_total_gib = 32\nhost_free_gib = 30\nhost_gb_per_s = 40\n'
        "cpu_expert_gb_per_s = 30\ncpu_gflops = 100\ncpu_cores = 4\npinnable_gib = 8\n"
        "disk_gb_per_s = 2\n"
    )
    result = cli(*SIMULATE, "--machine", str(file))
    assert result.code == 2
    assert "plain host has no GPU" in result.stderr
    assert "--machine 4060" in result.stderr


def test_a_dense_model_has_nothing_to_simulate(
    cli: Cli, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dense = ModelConfig.from_dict(
        {
            "architectures": ["XverseForCausalLM"],
            "model_type": "xverse",
            "hidden_size": 4096,
            "intermediate_size": 11008,
            "num_attention_heads": 32,
            "num_hidden_layers": 32,
            "vocab_size": 100534,
            "max_position_embeddings": 8192,
            "rms_norm_eps": 1e-6,
        }
    )
    monkeypatch.setattr("xverse_cli.doctor.advice.known_config", lambda model: (dense, None))
    result = cli(*SIMULATE, "--machine", "4090", "--precision", "int4")
    assert result.code == 2
    assert "no experts" in result.stderr


def test_bench_as_json() -> None:
    streams = Streams(memory_stream(), memory_stream(), memory_stream())
    argv = ["bench", "-m", "demo", "--device", "cpu", "--rounds", "1", "--new-tokens", "4"]
    assert run([*argv, "--json"], Host(streams, {})) == 0
    told = json.loads(written(streams.stdout))
    assert (told["new_tokens"], told["prompt_tokens"], told["rounds"]) == (4, 128, 1)
    assert told["decode_tokens_per_s"] > 0
