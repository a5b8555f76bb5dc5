"""`--precision auto` is what `xverse doctor` recommends, whichever command is asked."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.cli.conftest import Cli
from tests.cli.models_support import cache
from tests.cli.pull_support import REPO, hub, two_shards
from tests.hub_server import HubServer
from xverse_cli.messages import figure
from xverse_cli.models.stores import find_store, stores_dir
from xverse_cli.settings import DEFAULT_MODEL
from xverse_runtime.offload import measure
from xverse_runtime.offload.machine import Machine
from xverse_runtime.offload.machines import find_machine
from xverse_runtime.store.synthetic import A4_2B

__all__ = ["cache", "hub"]

HOST = replace(find_machine("4060"), gpu="", vram_total=0, vram_free=0)
FAST_HOST = replace(
    HOST,
    host_total=64 * 2**30,
    host_free=60 * 2**30,
    host_bandwidth=150e9,
    cpu_expert_bandwidth=140e9,
    cpu_cores=24,
)
# By its processor alone the 4060's machine would take int4, as the host without it does.
EXPECTED = {"4060": "int8", "H100": "bf16", "host": "int4", "fast host": "int8"}


@pytest.fixture(params=EXPECTED)
def expected(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The precision that suits a machine, which is what every measurement now finds."""
    hosts = {"host": HOST, "fast host": FAST_HOST}
    machine = hosts.get(request.param) or find_machine(request.param)

    def measured(device: torch.device) -> Machine:
        return machine

    monkeypatch.setattr(measure, "measure_machine", measured)
    return EXPECTED[request.param]


def test_doctor_recommends_it(cli: Cli, cache: Path, expected: str) -> None:
    assert cli("doctor", "--model", DEFAULT_MODEL, "--json").json["chosen"] == expected


def test_pull_takes_it(cli: Cli, hub: HubServer, expected: str) -> None:
    hub.add_model(REPO, {**two_shards(), "config.json": json.dumps(A4_2B).encode()})
    result = cli("pull", REPO, "--precision", "auto", "--dry-run", "--json")
    assert result.code == 0, result.stderr
    assert result.json["conversion"]["precision"] == expected
    assert f"Precision {expected}, " in result.stderr


def test_convert_takes_it(cli: Cli, tmp_path: Path, expected: str) -> None:
    model = tmp_path / "published"
    model.mkdir()
    (model / "config.json").write_text(json.dumps(A4_2B))
    result = cli("convert", str(model), "--output", str(tmp_path / "store"))
    assert f"Precision {expected}, " in result.stderr  # before the weights are found missing
    assert result.code != 0


def test_of_several_stores_a_chat_takes_it(cache: Path, expected: str) -> None:
    for precision in ("bf16", "int8", "int4"):
        store = stores_dir() / f"{REPO.replace('/', '--')}-{precision}"
        store.mkdir(parents=True)
        (store / "xverse.json").write_text("{}")
        (store / "config.json").write_text(json.dumps(A4_2B))
    found = find_store(REPO, None, "auto")
    assert found is not None
    assert found.name.endswith(expected)


def test_where_nothing_fits_the_lowest_is_packed(
    cli: Cli, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = replace(HOST, host_total=2**30, host_free=2**29)
    monkeypatch.setattr(measure, "measure_machine", lambda device: tiny)
    monkeypatch.setattr("xverse_cli.models.machine_fit.memory_bytes", lambda: 2**30)
    hub.add_model(REPO, {**two_shards(), "config.json": json.dumps(A4_2B).encode()})
    result = cli("pull", REPO, "--precision", "auto", "--dry-run", "--json")
    assert result.json["conversion"]["precision"] == "int4"
    assert "nothing is predicted to fit" in result.stderr


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.75149, "0.751"), (17.846, "17.8"), (5618.9, "5620"), (11952.3, "12000"), (0.0, "0")],
)
def test_figures_have_the_digits_that_count(value: float, shown: str) -> None:
    assert figure(value) == shown
