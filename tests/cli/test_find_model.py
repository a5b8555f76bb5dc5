"""What `--model` may name, and what is said when it is not there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Cli
from xverse_cli.messages import error_text
from xverse_cli.models.find import FoundModel, find_model
from xverse_cli.settings import DEFAULT_MODEL
from xverse_runtime.demo import demo_directory
from xverse_runtime.errors import ModelNotFoundError

COMMIT = "0123456789abcdef"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty Hub cache."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def add_snapshot(hub: Path, repo: str, *names: str, ref: str = "main") -> Path:
    folder = hub / ("models--" + repo.replace("/", "--"))
    (folder / "refs" / ref).parent.mkdir(parents=True, exist_ok=True)
    (folder / "refs" / ref).write_text(COMMIT, encoding="utf-8")
    snapshot = folder / "snapshots" / COMMIT
    snapshot.mkdir(parents=True, exist_ok=True)
    for name in names:
        (snapshot / name).write_text("{}", encoding="utf-8")
    return snapshot


def failure(model: str) -> tuple[str, str]:
    """Code and whole text of the error."""
    with pytest.raises(ModelNotFoundError) as caught:
        find_model(model)
    return caught.value.code, " ".join(error_text(caught.value))


def test_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").mkdir()
    assert find_model("demo") == FoundModel(demo_directory(), "demo")
    assert find_model("./demo") == FoundModel(tmp_path / "demo")


def test_local_directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    monkeypatch.chdir(tmp_path)
    model = tmp_path / "org" / "name"
    model.mkdir(parents=True)
    (home / "mine").mkdir()
    for spelling in ("org/name", "./org/name", "org/name/", str(model)):
        assert find_model(spelling) == FoundModel(model)
    assert find_model("~/mine") == FoundModel(home / "mine")


@pytest.mark.parametrize("model", ["./none", "../none", "/no/ne", "~/none", "a/b/c", "none/"])
def test_local_looking_paths_that_are_not_there(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hub: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    code, message = failure(model)
    assert code == "model.no_such_directory"
    assert "--model demo" in message


def test_a_file_is_not_a_model(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    code, message = failure(str(tmp_path / "config.json"))
    assert code == "model.is_a_file"
    assert f"--model {tmp_path}" in message


@pytest.mark.parametrize("model", ["nothing", "a b/c", "org/na me", "org/x@a..b", "org/x@"])
def test_names_that_are_nothing(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hub: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert failure(model)[0] == "model.unknown_name"


def test_a_hub_id_that_is_not_cached(hub: Path) -> None:
    code, message = failure(DEFAULT_MODEL)
    assert code == "model.not_cached"
    assert f"xverse pull {DEFAULT_MODEL}" in message
    assert "HF_ENDPOINT=" in message
    assert "--model demo" in message
    assert str(hub) in message


def test_the_cache_is_named_from_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    assert "(looked in ~" in failure("org/name")[1]


@pytest.mark.parametrize("weights", ["model.safetensors", "pytorch_model.bin"])
def test_a_cached_snapshot(hub: Path, weights: str) -> None:
    snapshot = add_snapshot(hub, "org/name", "config.json", weights)
    assert find_model("org/name") == FoundModel(snapshot, "org/name")
    assert find_model("org/name@main") == FoundModel(snapshot, "org/name")
    assert find_model(f"org/name@{COMMIT}") == FoundModel(snapshot, "org/name", COMMIT)


def test_a_revision(hub: Path) -> None:
    snapshot = add_snapshot(hub, "org/name", "config.json", "model.safetensors", ref="refs/pr/1")
    assert find_model("org/name@refs/pr/1") == FoundModel(snapshot, "org/name", "refs/pr/1")
    code, message = failure("org/name")
    assert code == "model.no_such_revision"
    assert "refs/pr/1" in message
    assert "xverse pull org/name@main" in message


def test_a_reference_cannot_lead_out_of_the_cache(hub: Path, tmp_path: Path) -> None:
    snapshot = add_snapshot(hub, "org/name", "config.json", "model.safetensors")
    (tmp_path / "elsewhere").mkdir()
    reference = snapshot.parents[1] / "refs" / "main"
    reference.write_text("../../../elsewhere", encoding="utf-8")
    assert failure("org/name")[0] == "model.no_such_revision"


def incomplete(hub: Path) -> str:
    code, message = failure("org/name")
    assert code == "model.incomplete_download"
    assert "xverse pull org/name" in message
    return message


def test_incomplete_without_config_or_weights(hub: Path) -> None:
    add_snapshot(hub, "org/name")
    assert "config.json, model.safetensors not there" in incomplete(hub)


def test_incomplete_shards(hub: Path) -> None:
    snapshot = add_snapshot(hub, "org/name", "config.json", "pytorch_model-1.bin")
    weight_map = {"a": "pytorch_model-1.bin", "b": "pytorch_model-2.bin", "c": "../x"}
    index = snapshot / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}), encoding="utf-8")
    assert "pytorch_model-2.bin not there" in incomplete(hub)


def test_incomplete_when_a_link_leads_nowhere(hub: Path) -> None:
    snapshot = add_snapshot(hub, "org/name", "config.json")
    (snapshot / "model.safetensors").symlink_to("../../blobs/none")
    assert "model.safetensors not there" in incomplete(hub)


def test_a_broken_index_is_left_to_the_runtime(hub: Path) -> None:
    snapshot = add_snapshot(hub, "org/name", "config.json", "pytorch_model.bin.index.json")
    assert find_model("org/name").path == snapshot


@pytest.mark.parametrize("model", ["org/not-here", "./not-here", "not-here"])
def test_exit_code(cli: Cli, hub: Path, model: str) -> None:
    result = cli("generate", "hi", "--model", model)
    assert result.code == 3
    assert result.stdout == b""
    assert result.stderr.startswith("error: ")
