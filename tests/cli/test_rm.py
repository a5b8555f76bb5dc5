"""`xverse rm`: what belongs to a model goes, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from filelock import FileLock

from tests.cli.conftest import Cli
from tests.cli.models_support import NEW, OLD, add, add_golden, begin, cache, files_below
from tests.cli.pull_support import CONFIG, REPO, two_shards
from xverse_cli.models.inventory import stored_models
from xverse_cli.models.stores import stores_dir

__all__ = ["cache"]


def test_the_last_revision_takes_the_folder_with_it(cli: Cli) -> None:
    folder = add(two_shards())
    result = cli("rm", REPO, "--yes", "--json")
    assert result.code == 0, result.stderr
    assert result.json["freed_bytes"] == sum(map(len, two_shards().values()))
    assert result.json["removed"] is True
    assert not folder.root.exists()
    assert cli("list", "--json").json == []


def test_a_blob_of_two_revisions_is_kept(cli: Cli) -> None:
    files = two_shards()
    folder = add(files, commit=OLD, branch="v1")
    add({**files, "config.json": CONFIG + b" "})
    result = cli("rm", REPO, "--yes", "--json")
    assert result.json["freed_bytes"] == len(CONFIG) + 1
    assert folder.branches() == {"v1": OLD}
    assert folder.commits() == [OLD]
    kept = folder.snapshot(OLD)
    assert {one.name: one.read_bytes() for one in kept.iterdir()} == files
    assert len(list(folder.blobs.iterdir())) == len(files)
    assert cli("rm", f"{REPO}@v1", "--yes").code == 0
    assert not folder.root.exists()


def test_unfinished_downloads_are_removed(cli: Cli) -> None:
    files = two_shards()
    last = files.pop("pytorch_model-00002-of-00002.bin")
    folder = add(files)
    begin(folder, "pytorch_model-00002-of-00002.bin", last)
    (folder.work / "pull.json").write_text(json.dumps({"main": NEW}))
    result = cli("rm", REPO, "--yes", "--json")
    assert result.json["freed_bytes"] == sum(map(len, files.values())) + len(last) // 2
    assert not folder.root.exists()


def test_what_is_being_fetched_of_another_revision_stays(cli: Cli) -> None:
    folder = add(two_shards())
    digest = begin(folder, "x.bin", b"x" * 1000, OLD)
    (folder.work / "pull.json").write_text(json.dumps({"main": NEW, "v1": OLD}))
    add({"config.json": CONFIG}, commit=OLD, branch="v1")
    assert cli("rm", REPO, "--yes").code == 0
    assert [pinned.digest for pinned, _ in folder.unfinished()] == [digest]
    assert json.loads((folder.work / "pull.json").read_bytes()) == {"v1": OLD}


def test_files_of_nobody_stay(cli: Cli) -> None:
    folder = add(two_shards())
    (folder.root / "notes.txt").write_text("mine")
    (folder.blobs / "mine").write_text("mine")
    assert cli("rm", REPO, "--yes").code == 0
    assert files_below(folder.root) == {folder.root / "notes.txt", folder.blobs / "mine"}


def test_parts_of_it(cli: Cli, golden: Path) -> None:
    folder = add_golden(golden)
    for precision in ("int4", "int8"):
        assert cli("convert", REPO, "--precision", precision).code == 0
    assert cli("rm", REPO, "--precision", "int4", "--yes").code == 0
    assert [one.precision for one in stored_models()] == [None, "int8"]
    assert cli("rm", REPO, "--published", "--yes").code == 0
    assert not folder.root.exists()
    assert [one.precision for one in stored_models()] == ["int8"]
    assert cli("rm", REPO, "--precision", "int4", "--yes").code == 3
    assert cli("rm", REPO, "--published", "--precision", "int4", "--yes").code == 2
    assert cli("rm", REPO, "--yes").code == 0
    assert list(stores_dir().iterdir()) == []


def test_everything_of_a_revision_goes_together(cli: Cli, golden: Path) -> None:
    add_golden(golden)
    assert cli("convert", REPO, "--precision", "int4").code == 0
    result = cli("rm", REPO, stdin=b"y\n", terminal="ie")
    assert result.code == 0
    assert "store int4" in result.stderr
    assert cli("list", "--json").json == []


def test_a_store_by_its_path(cli: Cli, golden: Path) -> None:
    folder = add_golden(golden)
    store = cli("convert", REPO, "--precision", "int4").stdout.decode().strip()
    half = stores_dir() / "zoo--Half-int4.partial"
    half.mkdir()
    (half / "layer-00000.safetensors").write_bytes(b"x" * 100)
    assert [one.state for one in stored_models()] == ["complete", "complete", "incomplete"]
    for path in (store, str(half)):
        assert cli("rm", path, "--yes").code == 0
    assert folder.root.exists()
    assert list(stores_dir().iterdir()) == []


def test_the_answer_counts(cli: Cli) -> None:
    folder = add(two_shards())
    before = files_below(folder.root)
    unasked = cli("rm", REPO)
    assert unasked.code == 2
    assert "--yes" in unasked.stderr
    for answer in (b"n\n", b"\n", b""):
        result = cli("rm", REPO, stdin=answer, terminal="ie")
        assert result.code == 0
        assert "Nothing was deleted" in result.stderr
    dry = cli("rm", REPO, "--dry-run")
    assert dry.code == 0
    assert REPO in dry.stdout.decode()
    assert files_below(folder.root) == before


@pytest.mark.parametrize(
    ("model", "code"),
    [
        ("org/none", 3),
        (f"{REPO}@v9", 3),
        ("../x", 3),
        ("org/x@a/../../y", 3),
        ("org/..", 2),
        ("nothing", 3),
        ("demo", 2),
        (".", 2),
        ("..", 2),
        ("/", 2),
    ],
)
def test_what_is_not_there_or_not_ours(cli: Cli, cache: Path, model: str, code: int) -> None:
    add(two_shards())
    before = files_below(cache)
    result = cli("rm", model, "--yes")
    assert result.code == code, result.stderr
    assert len(result.stderr.splitlines()) > 1  # a hint
    assert files_below(cache) == before


def test_a_branch_that_points_out_of_the_folder(cli: Cli, cache: Path) -> None:
    folder = add(two_shards())
    (cache / "precious").mkdir()
    (folder.refs / "main").write_text("../../precious")
    assert cli("rm", REPO, "--yes").code == 3
    assert (cache / "precious").exists()


def test_a_snapshot_is_removed_by_name_only(cli: Cli) -> None:
    folder = add(two_shards())
    assert cli("rm", str(folder.snapshot(NEW)), "--yes").code == 2
    assert folder.snapshot(NEW).exists()


def test_nothing_is_deleted_under_a_running_download(cli: Cli) -> None:
    folder = add(two_shards())
    folder.work.mkdir()
    before = files_below(folder.root)
    with FileLock(folder.lock):
        result = cli("rm", REPO, "--yes")
    assert result.code == 1
    assert "being fetched" in result.stderr
    assert files_below(folder.root) >= before
