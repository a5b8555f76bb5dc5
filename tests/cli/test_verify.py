"""`xverse verify` of published models, and repairing them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.cli.conftest import Cli
from tests.cli.models_support import NEW, add, add_golden, cache, damage, files_below
from tests.cli.pull_support import CONFIG, REPO, hub, two_shards
from tests.hub_server import HubServer
from xverse_cli.models.hub_folder import HubFolder

__all__ = ["cache", "hub"]


def test_published_files_are_verified(cli: Cli) -> None:
    add(two_shards())
    result = cli("verify", REPO, "--json")
    assert result.code == 0, result.stderr
    assert result.json["ok"] is True
    files = {one["name"]: one["bytes"] for one in result.json["files"]}
    assert files == {name: len(data) for name, data in two_shards().items()}
    assert "all as published" in cli("verify", REPO).stderr


def test_all_broken_files_are_named(cli: Cli) -> None:
    snapshot = add(two_shards()).snapshot(NEW)
    damage(snapshot / "pytorch_model-00001-of-00002.bin")
    (snapshot / "tokenizer.json").resolve().write_bytes(b"{")
    (snapshot / "pytorch_model-00002-of-00002.bin").unlink()
    result = cli("verify", REPO, "--json")
    assert result.code == 4
    broken = {one["name"] for one in result.json["files"] if not one["ok"]}
    assert broken == {
        "pytorch_model-00001-of-00002.bin",
        "pytorch_model-00002-of-00002.bin",
        "tokenizer.json",
    }
    assert result.json["ok"] is False
    assert all(name in result.stderr for name in broken)
    assert f"xverse verify {REPO} --repair" in result.stderr


def test_a_link_that_leads_nowhere_is_broken(cli: Cli) -> None:
    snapshot = add(two_shards()).snapshot(NEW)
    (snapshot / "tokenizer.json").resolve().unlink()
    result = cli("verify", REPO)
    assert result.code == 4
    assert "tokenizer.json" in result.stderr


def test_files_without_digests_are_no_errors(cli: Cli) -> None:
    folder = add(two_shards())
    (folder.blobs / "strange").write_bytes(b"x")
    folder.link(NEW, "README.md", "strange")
    result = cli("verify", REPO, "--json")
    assert result.code == 0
    assert {one["name"] for one in result.json["files"] if one["ok"] is None} == {"README.md"}
    assert "README.md" in result.stderr


@pytest.fixture
def fetched(cli: Cli, hub: HubServer) -> tuple[HubFolder, str]:
    """A model fetched from a hub, and its commit."""
    commit = hub.add_model(REPO, two_shards())
    assert cli("pull", REPO, "--accept-license").code == 0
    return HubFolder.of(REPO), commit


def test_repair_fetches_what_is_broken_and_nothing_else(
    cli: Cli, hub: HubServer, fetched: tuple[HubFolder, str]
) -> None:
    folder, commit = fetched
    snapshot = folder.snapshot(commit)
    damage(snapshot / "pytorch_model-00002-of-00002.bin")
    (snapshot / "tokenizer.json").resolve().unlink()
    newer = hub.add_model(REPO, {**two_shards(), "config.json": CONFIG + b" "})
    served = hub.served_bytes
    result = cli("verify", REPO, "--repair", "--json")
    assert result.code == 0, result.stderr
    assert result.json["ok"] is True
    assert {one.name: one.read_bytes() for one in snapshot.iterdir()} == two_shards()
    assert folder.branches() == {"main": commit}
    assert not folder.snapshot(newer).exists()
    assert hub.served_bytes - served < 1.1 * len(two_shards()["pytorch_model-00002-of-00002.bin"])
    assert cli("verify", REPO).code == 0


def test_repair_without_a_network_deletes_nothing(
    cli: Cli, fetched: tuple[HubFolder, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, commit = fetched
    damage(folder.snapshot(commit) / "pytorch_model-00001-of-00002.bin")
    before = files_below(folder.root)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert cli("verify", REPO, "--repair").code == 3
    assert files_below(folder.root) == before


def test_a_store_that_was_fetched(cli: Cli, golden: Path) -> None:
    add_golden(golden, "org/Source")
    store = Path(cli("convert", "org/Source", "--precision", "int4").stdout.decode().strip())
    files = {one.name: one.read_bytes() for one in store.iterdir()}
    add({**files, "LICENSE": b"terms"})
    assert [one["kind"] for one in cli("list", "--json").json] == ["published", "store", "store"]
    assert cli("verify", REPO).code == 0
    layer = "layer-00001.safetensors"
    add({layer: files[layer][:-1] + bytes([files[layer][-1] ^ 1])})  # as its blob says, but …
    result = cli("verify", REPO)
    assert result.code == 4
    assert layer in result.stderr


def test_all_broken_files_of_a_store_are_named(cli: Cli, golden: Path) -> None:
    add_golden(golden)
    store = Path(cli("convert", REPO, "--precision", "int4").stdout.decode().strip())
    names = {"layer-00000.safetensors", "layer-00001.safetensors"}
    for name in names:
        damage(store / name, 9000)
    result = cli("verify", REPO, "--json")
    assert result.code == 4
    assert {one["name"] for one in result.json["files"] if not one["ok"]} == names
    assert all(name in result.stderr for name in names)
    assert cli("verify", REPO, "--published").code == 0


def test_repair_makes_a_store_again(cli: Cli, golden: Path) -> None:
    folder = add_golden(golden)
    options = ("--precision", "int8", "--head", "bf16")
    store = Path(cli("convert", REPO, *options).stdout.decode().strip())
    before = {one.name: one.read_bytes() for one in store.iterdir()}
    damage(store / "layer-00001.safetensors", 9000)
    result = cli("verify", REPO, "--repair")
    assert result.code == 0, result.stderr
    assert {one.name: one.read_bytes() for one in store.iterdir()} == before
    damage(store / "layer-00001.safetensors", 9000)
    shutil.rmtree(folder.root)
    result = cli("verify", REPO, "--repair")
    assert result.code == 4
    assert "make it again" in result.stderr


@pytest.fixture
def packed(cli: Cli, hub: HubServer, tmp_path: Path) -> Path:
    """A store that was packed as its six weight files came."""
    from tests.runtime.test_store_streaming import publish

    publish("moe-bin", tmp_path / "published", "bin", 6)
    hub.add_model(REPO, {one.name: one.read_bytes() for one in (tmp_path / "published").iterdir()})
    command = ("pull", REPO, "--accept-license", "--precision", "int4", "--delete-source")
    return Path(cli(*command).stdout.decode().strip())


@pytest.mark.parametrize("cut", [False, True])
def test_repair_fetches_what_broken_files_of_a_store_are_made_of(
    cli: Cli, hub: HubServer, packed: Path, cut: bool
) -> None:
    before = {one.name: one.read_bytes() for one in packed.iterdir()}
    layer = packed / "layer-00002.safetensors"
    if cut:
        layer.write_bytes(layer.read_bytes()[:-1])
    else:
        damage(layer, 9000)
    kept = (packed / "layer-00000.safetensors").stat().st_mtime_ns
    served, whole = hub.served_bytes, hub.served_bytes
    result = cli("verify", REPO, "--repair", "--json", stdin=b"y\n", terminal="ie")
    assert result.code == 0, result.stderr
    assert result.json["ok"] is True
    assert "have to be fetched again" in result.stderr
    assert {one.name: one.read_bytes() for one in packed.iterdir()} == before
    assert (packed / "layer-00000.safetensors").stat().st_mtime_ns == kept
    assert 0 < hub.served_bytes - served < 0.7 * whole


def test_a_store_is_left_as_it_is_where_the_answer_is_no_or_nobody_answers(
    cli: Cli, hub: HubServer, packed: Path
) -> None:
    damage(packed / "layer-00002.safetensors", 9000)
    before = files_below(packed)
    assert cli("verify", REPO, "--repair", stdin=b"n\n", terminal="ie").code == 4
    hub.faults.down = ("hub", "cdn", "modelscope")
    assert cli("verify", REPO, "--repair", stdin=b"y\n", terminal="ie").code == 3
    assert files_below(packed) == before


def test_a_repair_that_is_interrupted_is_gone_on_with(
    cli: Cli, hub: HubServer, packed: Path
) -> None:
    before = {one.name: one.read_bytes() for one in packed.iterdir()}
    damage(packed / "layer-00002.safetensors", 9000)
    hub.faults.down = ("cdn", "modelscope")
    assert cli("verify", REPO, "--repair", stdin=b"y\n", terminal="ie").code == 3
    assert not packed.exists()
    hub.faults.down = ()
    result = cli("generate", "hi", "-m", REPO, stdin=b"\n", terminal="ie")
    assert result.code == 0, result.stderr
    assert "Go on with it?" in result.stderr
    assert {one.name: one.read_bytes() for one in packed.iterdir()} == before
