"""`xverse list` and `xverse show`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.cli.conftest import Cli
from tests.cli.models_support import NEW, OLD, add, add_golden, begin, cache, files_below
from tests.cli.pull_support import CONFIG, REPO, two_shards
from xverse_cli.models import last_use
from xverse_cli.models.hub_folder import HubFolder
from xverse_cli.models.inventory import stored_models, synthetic_dir
from xverse_cli.models.stores import stores_dir

__all__ = ["cache"]


def test_an_empty_machine(cli: Cli) -> None:
    assert cli("list", "--json").json == []
    result = cli("list")
    assert (result.code, result.stdout) == (0, b"")
    assert "xverse pull" in result.stderr
    assert "demo" in result.stderr


def test_published_models_and_stores_are_listed(cli: Cli, golden: Path) -> None:
    folder = add_golden(golden)
    assert cli("convert", REPO, "--precision", "int4").code == 0
    shutil.copytree(stores_dir() / f"{folder.root.name[8:]}-int4", synthetic_dir() / "a4.2b-int4")
    found = cli("list", "--json").json
    assert [(one["kind"], one["precision"]) for one in found] == [
        ("published", None),
        ("store", "int4"),
        ("synthetic", "int4"),
    ]
    assert [one["model"] for one in found] == [REPO, REPO, "a4.2b"]
    assert found[0]["branches"] == found[1]["branches"] == ["main"]
    assert found[0]["commit"] == found[1]["commit"] == NEW
    assert {one["state"] for one in found} == {"complete"}
    sizes = [one.stat().st_size for one in (golden / "moe-bin").iterdir()]
    assert found[0]["bytes"] == sum(sizes)
    told = cli("list").stdout.decode().splitlines()
    assert len(told) == 5
    assert told[0].split()[:3] == ["MODEL", "KIND", "SIZE"]
    assert f"main {NEW[:8]}" in told[1]
    assert "store int4" in told[2]


def test_other_families_are_passed_over(cli: Cli) -> None:
    llama = json.dumps({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}).encode()
    folder = add({"config.json": llama, "model.safetensors": b"x"}, "meta/llama")
    before = files_below(folder.root)
    assert cli("list", "--json").json == []
    result = cli("rm", "meta/llama", "--yes")
    assert result.code == 2
    assert "not a model of the XVERSE family" in result.stderr
    assert files_below(folder.root) == before


def test_shared_blobs_count_once(cli: Cli) -> None:
    files = two_shards()
    add(files, commit=OLD, branch="v1")
    add({**files, "config.json": CONFIG + b" "})
    found = cli("list", "--json").json
    size = sum(map(len, files.values()))
    assert [one["bytes"] for one in found] == [size, size + 1]
    from xverse_cli.models.inventory import together_bytes

    assert together_bytes(stored_models()) == size + len(CONFIG) + 1


def test_unfinished_downloads_are_listed(cli: Cli) -> None:
    files = two_shards()
    last = "pytorch_model-00002-of-00002.bin"
    missing = files.pop(last)
    folder = add(files)
    begin(folder, last, missing)
    (found,) = cli("list", "--json").json
    here = sum(map(len, files.values())) + len(missing) // 2
    assert found["state"] == "incomplete"
    assert (found["bytes"], found["total_bytes"]) == (here, here + len(missing) - len(missing) // 2)
    assert "KiB of" in cli("list").stdout.decode()


def test_a_download_without_its_first_file_is_listed_too(cli: Cli) -> None:
    begin(HubFolder.of(REPO), "config.json", b"x" * 1000)
    (found,) = cli("list", "--json").json
    assert (found["model"], found["state"], found["bytes"]) == (REPO, "incomplete", 500)


def test_what_a_conversion_leaves_is_without_weights(cli: Cli, golden: Path) -> None:
    add_golden(golden)
    assert cli("convert", REPO, "--precision", "int4", "--delete-source", "--yes").code == 0
    assert [one["state"] for one in cli("list", "--json").json] == ["no_weights", "complete"]


def test_the_last_use_is_known_after_a_run(cli: Cli, golden: Path) -> None:
    folder = add_golden(golden)
    assert cli("list", "--json").json[0]["last_use"] is None
    assert cli("generate", "hi", "--model", REPO).code == 0
    assert cli("list", "--json").json[0]["last_use"] is not None
    assert cli("rm", REPO, "--yes").code == 0
    assert last_use.last_use(folder.snapshot(NEW)) is None


def test_last_use_is_never_an_error(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "file").write_text("")
    monkeypatch.setattr(last_use, "state_dir", lambda: home / "file")
    last_use.record(home)
    assert last_use.last_use(home) is None
    last_use.forget(home)


# show


def test_show_the_demo(cli: Cli) -> None:
    result = cli("show", "demo")
    assert result.code == 0, result.stderr
    told = result.stdout.decode()
    for part in ("demo", "million", "experts", "Chat template", "Apache-2.0", "model.safetensors"):
        assert part in told


def test_show_counts_parameters(cli: Cli, golden: Path) -> None:

    path = golden / "moe-safetensors"
    found = cli("show", str(path), "--json").json
    total = 0
    for shard in path.glob("model-*.safetensors"):
        total += sum(tensor.numel() for tensor in load_file(shard).values())
    config = json.loads((path / "config.json").read_bytes())
    idle = config["num_experts"] - config["moe_top_k"]
    expert = 3 * config["hidden_size"] * config["intermediate_size"]
    assert found["parameters"] == total
    assert found["active_parameters"] == total - idle * expert * config["num_hidden_layers"]
    assert found["architecture"]["experts_per_token"] == config["moe_top_k"]


def test_show_a_hub_id_and_its_stores(cli: Cli, golden: Path) -> None:
    folder = add_golden(golden)
    add({"MODEL_LICENSE.pdf": b"terms"})
    assert cli("convert", REPO, "--precision", "int4").code == 0
    found = cli("show", REPO, "--json").json
    assert found["path"] == str(folder.snapshot(NEW))
    assert (found["revision"], found["commit"]) == ("main", NEW)
    assert [*found["stores"]] == ["int4"]
    assert found["chat_template"]["reason"] == "template.chat_name"
    assert found["licence"] == {"files": ["MODEL_LICENSE.pdf"], "accepted": None}
    told = cli("show", REPO).stdout.decode()
    assert "assumed because" in told
    assert "Model License Agreement" in told
    store = cli("show", found["stores"]["int4"], "--json").json
    assert store["precision"] == {"experts": "int4", "attention": "int8", "head": "int8"}
    assert store["commit"] == NEW


def test_show_agrees_with_the_engine(cli: Cli, golden: Path) -> None:
    from xverse_runtime.config import EngineConfig
    from xverse_runtime.engine import Engine

    folder = add_golden(golden)
    engine = Engine.load(folder.snapshot(NEW), EngineConfig(), model_name=REPO)
    found = cli("show", REPO, "--json").json["chat_template"]
    assert (found["name"], found["reason"]) == (
        engine.template_choice.name,
        engine.template_choice.reason,
    )


def test_show_what_is_not_complete_or_not_there(cli: Cli, golden: Path) -> None:
    add_golden(golden).snapshot(NEW).joinpath("pytorch_model-00001-of-00002.bin").unlink()
    assert cli("show", REPO).code == 0
    assert cli("show", "org/none").code == 3


@pytest.mark.parametrize("kind", ["published", "store"])
def test_files_that_are_cut_short_are_damaged(cli: Cli, golden: Path, kind: str) -> None:
    snapshot = add_golden(golden).snapshot(NEW)
    store = Path(cli("convert", REPO, "--precision", "int4").stdout.decode().strip())
    name = "pytorch_model-00002-of-00002.bin" if kind == "published" else "layer-00001.safetensors"
    file = ((snapshot if kind == "published" else store) / name).resolve()
    file.write_bytes(file.read_bytes()[:-1000])
    found = {one["kind"]: one for one in cli("list", "--json").json}
    assert (found[kind]["state"], found[kind]["damaged"]) == ("damaged", [name])
    (other,) = (one for key, one in found.items() if key != kind)
    assert (other["state"], other["damaged"]) == ("complete", [])
    told = cli("list")
    named = f"{REPO} --published" if kind == "published" else str(store)
    assert f"xverse verify {named} --repair" in told.stderr
    assert cli("verify", *named.split()).code == 4


def test_safetensors_tell_their_size(golden: Path, tmp_path: Path) -> None:
    from xverse_cli.models.sizes import cut_files

    model = Path(shutil.copytree(golden / "moe-safetensors", tmp_path / "model"))
    assert cut_files(model) == []
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    (model / names[0]).write_bytes((model / names[0]).read_bytes()[:-1])
    (model / names[1]).write_bytes(b"")
    assert cut_files(model) == names


def test_what_is_incomplete_names_the_command_that_goes_on(cli: Cli, golden: Path) -> None:
    files = {one.name: one.read_bytes() for one in (golden / "moe-bin").iterdir()}
    files.pop("pytorch_model-00002-of-00002.bin")
    add(files)
    assert f"xverse pull {REPO}\n" in cli("list").stderr
    partial = stores_dir() / f"{REPO.replace('/', '--')}-int4.partial"
    partial.mkdir(parents=True)
    told = cli("list").stderr
    assert f"xverse pull {REPO} --precision int4 --delete-source" in told
    assert f"xverse pull {REPO}\n" not in told


def test_a_narrow_terminal_breaks_no_row(
    cli: Cli, golden: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_golden(golden, "xverse/XVERSE-MoE-with-a-long-name-that-goes-on-and-on")
    monkeypatch.setenv("COLUMNS", "80")
    lines = cli("list", terminal="o").stdout.decode().splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0] == "MODEL"
    assert lines[1].split()[:2] == ["KIND", "SIZE"]
    assert lines[2].endswith("goes-on-and-on")
    assert lines[3].split()[0] == "published"
    monkeypatch.setenv("COLUMNS", "200")
    assert cli("list", terminal="o").stdout.decode().splitlines()[0].split()[:2] == [
        "MODEL",
        "KIND",
    ]


def test_show_cuts_no_word_at_the_edge_of_the_screen(
    cli: Cli, golden: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_golden(golden)
    piped = cli("show", REPO).stdout.decode()
    monkeypatch.setenv("COLUMNS", "60")
    shown = cli("show", REPO, terminal="o").stdout.decode()
    assert shown.split() == piped.split()
    long = [line for line in shown.splitlines() if len(line) > 60]
    assert len(long) < len([line for line in piped.splitlines() if len(line) > 60])
    assert all("/" in line for line in long)  # a path, which stays whole


def test_show_a_store_whose_source_was_deleted(cli: Cli, golden: Path) -> None:
    add_golden(golden)
    assert cli("convert", REPO, "--precision", "int4", "--delete-source", "--yes").code == 0
    found = cli("show", REPO, "--json").json
    assert found["precision"] == {"experts": "int4", "attention": "int8", "head": "int8"}
