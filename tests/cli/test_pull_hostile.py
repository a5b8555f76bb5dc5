"""`xverse pull` and `xverse verify --repair` where server and cache are not to be trusted."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Cli
from tests.cli.pull_support import (
    CONFIG,
    PART,
    REPO,
    contents,
    golden_files,
    hub,
    noise,
    snapshot,
    two_shards,
)
from tests.hub_server import HubServer, _Handler
from xverse_cli.models import licence
from xverse_cli.models.download.http import Body
from xverse_cli.models.download.partial_file import PartialFile
from xverse_cli.models.download.parts import Pinned
from xverse_cli.models.download.remote import RemoteFile, read_commit, read_file
from xverse_cli.models.hub_folder import HubFolder

__all__ = ["golden_files", "hub"]
ACCEPT = "--accept-license"
FIRST = "pytorch_model-00001-of-00002.bin"


def blobs(home: Path) -> Path:
    return home / "hub" / f"models--{REPO.replace('/', '--')}" / "blobs"


@pytest.mark.parametrize(
    ("name", "size", "sha256", "git_id"),
    [
        ("../x", 1, "a" * 64, None),
        ("a/../x", 1, "a" * 64, None),
        ("/x", 1, "a" * 64, None),
        ("..\\..\\x", 1, "a" * 64, None),
        ("C:x", 1, "a" * 64, None),
        ("x\0", 1, "a" * 64, None),
        ("x\ud800", 1, "a" * 64, None),
        ("x" * 300, 1, "a" * 64, None),
        (5, 1, "a" * 64, None),
        ("x", -5, "a" * 64, None),
        ("x", "abc", "a" * 64, None),
        ("x", [1], "a" * 64, None),
        ("x", 1e400, "a" * 64, None),
        ("x", 2**60, "a" * 64, None),
        ("x", None, "a" * 64, None),
        ("x", 1, "../../../victim", None),
        ("x", 1, 5, None),
        ("x", 1, None, "../x"),
        ("x", 1, None, None),
    ],
)
def test_senseless_files_of_a_list(
    name: object, size: object, sha256: object, git_id: object
) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        read_file(name, size, sha256, git_id)


def test_sensible_files_of_a_list() -> None:
    assert read_file("a b.bin", 0, "A" * 64, None).digest == "a" * 64
    assert read_file("x/y.json", 5, None, "b" * 40) == RemoteFile("x/y.json", 5, None, "b" * 40)
    with pytest.raises(ValueError, match="commit"):
        read_commit("../../../victim")


def answering(monkeypatch: pytest.MonkeyPatch, change: Callable[[Any], None]) -> None:
    """Let the hub say something else about models."""
    original = _Handler._json

    def say(self: _Handler, value: Any, status: int = 200) -> None:
        if isinstance(value, dict) and "siblings" in value:
            change(value)
        original(self, value, status)

    monkeypatch.setattr(_Handler, "_json", say)


@pytest.mark.parametrize("what", ["commit", "digest", "name", "sizes"])
def test_a_hostile_mirror_writes_nothing_outside(
    cli: Cli, hub: HubServer, home: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    hub.add_model(REPO, two_shards(), hosts=("huggingface",))
    victim = home / "victim"
    victim.mkdir()
    (victim / "config.json").write_text("precious")

    def change(answer: Any) -> None:
        if what == "commit":
            answer["sha"] = "../../../victim"
        for file in answer["siblings"]:
            if what == "digest" and "lfs" in file:
                file["lfs"]["sha256"] = str(victim / "id")
            elif what == "name":
                file["rfilename"] = "../../../../victim/" + file["rfilename"]
            elif what == "sizes":
                del file["size"]

    answering(monkeypatch, change)
    result = cli("pull", REPO, ACCEPT)
    assert result.code == 3
    assert "no good answer" in result.stderr
    assert contents(victim) == {"config.json": b"precious"}


def test_a_config_that_is_no_json(cli: Cli, hub: HubServer) -> None:
    hub.add_model(REPO, {**two_shards(), "config.json": b"{no"})
    result = cli("pull", REPO, ACCEPT, "--precision", "int4")
    assert (result.code, "not valid JSON" in result.stderr) == (4, True)


def test_nothing_in_the_current_folder_is_run(
    cli: Cli, golden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    from xverse_cli.models.machine_fit import machine_fit_apart

    (tmp_path / "json.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    paths = [str(Path(one).resolve()) for one in sys.path if one]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "torch")
    assert machine_fit_apart((golden / "moe-bin" / "config.json").read_bytes(), None)
    assert not (tmp_path / "ran").exists()


# Parts that two connections bring.


class Pieces:
    """A response of given pieces; ``between`` runs before the second."""

    def __init__(self, data: bytes, between: Callable[[], None]) -> None:
        self._pieces = [data[: len(data) // 2], data[len(data) // 2 :]]
        self._between = between

    def read1(self, most: int) -> bytes:
        if len(self._pieces) == 1:
            self._between()
        return self._pieces.pop(0) if self._pieces else b""


def partial(tmp_path: Path, data: bytes) -> PartialFile:
    import hashlib

    digest = hashlib.sha256(data).hexdigest()
    file = RemoteFile("x.bin", len(data), digest, None)
    pinned = Pinned(digest, len(data), "x.bin", REPO, "c" * 40, "huggingface")
    return PartialFile(file, tmp_path / "whole", tmp_path, pinned)


def body(data: bytes, start: int, between: Callable[[], None] = lambda: None) -> Body:
    return Body(Pieces(data, between), start, None, {}, "", True)


def finished(file: PartialFile) -> bool:
    digest = file.file.new_digest()
    while file.hash_more(digest):
        pass
    return file.hashed_bytes == file.file.size and file.is_right(digest)


def test_a_part_that_another_connection_overtakes(tmp_path: Path, hub: HubServer) -> None:
    data = noise(PART)
    file = partial(tmp_path, data)
    (part,) = file.table.parts
    late = body(data, 0)
    file.receive_all(body(data[:1000] + data[1000:], 0))
    file.receive(part, late)
    assert finished(file)
    file.close()


def test_what_comes_after_a_file_started_over_is_dropped(tmp_path: Path, hub: HubServer) -> None:
    from xverse_cli.models.download.http import TransientError

    data = noise(PART)
    file = partial(tmp_path, data)
    (part,) = file.table.parts
    with pytest.raises(TransientError):
        file.receive(part, body(b"\0" * PART, 0, file.start_over))
    assert file.done_bytes == 0
    file.receive(part, body(data, 0))
    assert finished(file)
    with pytest.raises(TransientError):
        file.receive(part, body(data, 0, file.close))


def test_a_gap_is_no_progress(tmp_path: Path, hub: HubServer) -> None:
    data = noise(PART)
    file = partial(tmp_path, data)
    file.receive(file.table.parts[0], body(data[100:], 100))
    assert file.table.frontier == 0
    file.close()


def test_a_disk_that_fails_while_syncing_is_an_error(
    cli: Cli, hub: HubServer, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno

    hub.add_model(REPO, two_shards())
    hub.faults.rate = 4 * PART
    monkeypatch.setattr("xverse_cli.models.download.transfer.SYNC_S", 0.05)

    def fail(self: PartialFile) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(PartialFile, "sync", fail)
    result = cli("pull", REPO, ACCEPT)
    assert result.code == 1
    assert os.strerror(errno.EIO) in result.stderr
    # it may fail before the first small file is there, and the folder with it
    assert not any(len(blob.name) == 64 for blob in blobs(home).glob("*"))


# Caches.


def test_blobs_of_others_are_checked_before_they_are_packed_and_deleted(
    cli: Cli, hub: HubServer, home: Path, golden_files: dict[str, bytes]
) -> None:
    files = golden_files
    commit = hub.add_model(REPO, files)
    assert cli("pull", REPO, ACCEPT).code == 0
    blob = (snapshot(home, commit) / FIRST).resolve()
    data = bytearray(blob.read_bytes())
    data[len(data) // 2] ^= 1
    blob.write_bytes(data)
    result = cli("pull", REPO, "--precision", "int8", "--delete-source")
    assert result.code == 0, result.stderr
    assert hub.asked("cdn", FIRST)[1:]
    whole = {name: data for name, data in files.items() if "pytorch_model" not in name}
    assert contents(snapshot(home, commit)) == whole


def test_a_blob_that_another_revision_has_in_a_folder_stays(
    cli: Cli, hub: HubServer, home: Path, golden_files: dict[str, bytes]
) -> None:
    files = golden_files
    commit = hub.add_model(REPO, files)
    assert cli("pull", REPO, ACCEPT).code == 0
    blob = (snapshot(home, commit) / FIRST).resolve()
    other = snapshot(home, "d" * 40) / "original" / "w.bin"
    other.parent.mkdir(parents=True)
    other.symlink_to(os.path.relpath(blob, other.parent))
    assert cli("pull", REPO, "--precision", "int8", "--delete-source").code == 0
    assert other.read_bytes() == files[FIRST]


def test_a_store_that_is_there_lets_its_source_go(
    cli: Cli, hub: HubServer, home: Path, golden_files: dict[str, bytes]
) -> None:
    files = golden_files
    commit = hub.add_model(REPO, files)
    assert cli("pull", REPO, ACCEPT, "--precision", "int8").code == 0
    assert (snapshot(home, commit) / FIRST).exists()
    assert cli("pull", REPO, "--precision", "int8", "--delete-source").code == 0
    assert not (snapshot(home, commit) / FIRST).exists()


def test_without_a_network_a_store_is_made_of_what_is_there(
    cli: Cli, hub: HubServer, golden_files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    files = golden_files
    hub.add_model(REPO, files)
    assert cli("pull", REPO, ACCEPT).code == 0
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    result = cli("pull", REPO, "--precision", "int4")
    assert result.code == 0, result.stderr
    assert result.stdout.decode().strip().endswith("-int4")


def test_where_links_are_not_allowed(
    cli: Cli, hub: HubServer, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from xverse_cli.models.stores import delete_published

    def no_links(self: Path, target: object) -> None:
        raise OSError("a required privilege is not held")

    monkeypatch.setattr(Path, "symlink_to", no_links)
    files = two_shards()
    commit = hub.add_model(REPO, files)
    assert cli("pull", REPO, ACCEPT).code == 0
    assert contents(snapshot(home, commit)) == files
    delete_published(snapshot(home, commit), [FIRST])
    assert len([blob for blob in blobs(home).iterdir() if len(blob.name) == 64]) == 1


def test_a_branch_whose_name_begins_like_another(home: Path, hub: HubServer) -> None:
    folder = HubFolder.of(REPO)
    for name in ("v1", "v1/fix", "v1"):
        folder.set_branch(name, "a" * 40)
        assert folder.branches() == {name: "a" * 40}


def test_a_table_that_a_kill_left_behind_is_cleared_away(
    cli: Cli, hub: HubServer, home: Path
) -> None:
    from xverse_cli.models.download.parts import PartTable

    files = two_shards()
    commit = hub.add_model(REPO, files)
    assert cli("pull", REPO, ACCEPT).code == 0
    blob = (snapshot(home, commit) / FIRST).resolve()
    pinned = Pinned(blob.name, blob.stat().st_size, FIRST, REPO, commit, "huggingface")
    folder = HubFolder.of(REPO)
    PartTable.open(folder.work / f"{blob.name}.parts", pinned, 0).close()
    assert folder.unfinished()
    assert cli("pull", REPO).code == 0
    assert not folder.unfinished()


def test_many_files(cli: Cli, hub: HubServer, home: Path) -> None:
    import resource

    names = [f"model-{number:05}-of-00150.safetensors" for number in range(150)]
    files = {"config.json": CONFIG, **{name: noise(100, seed) for seed, name in enumerate(names)}}
    commit = hub.add_model(REPO, files)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, limits[1]))
    try:
        result = cli("pull", REPO, ACCEPT)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert result.code == 0, result.stderr
    assert contents(snapshot(home, commit)) == files


# Repairing.


def damage(home: Path, commit: str) -> None:
    blob = (snapshot(home, commit) / FIRST).resolve()
    data = bytearray(blob.read_bytes())
    data[7] ^= 1
    blob.write_bytes(data)


def test_repairing_accepts_no_licence(cli: Cli, hub: HubServer, home: Path) -> None:
    files = two_shards()
    commit = hub.add_model(REPO, files)
    assert cli("pull", REPO, ACCEPT).code == 0
    licence._path().unlink()
    damage(home, commit)
    assert cli("verify", REPO, "--repair").code == 0
    assert licence.accepted(REPO) is None
    assert contents(snapshot(home, commit)) == files


def test_repairing_what_came_from_modelscope(cli: Cli, hub: HubServer, home: Path) -> None:
    files = two_shards()
    hub.add_model(REPO, files, hosts=("modelscope",))
    assert cli("pull", REPO, ACCEPT, "--source", "modelscope").code == 0
    (commit,) = HubFolder.of(REPO).commits()
    damage(home, commit)
    result = cli("verify", REPO, "--repair")
    assert result.code == 0, result.stderr
    assert contents(snapshot(home, commit)) == files


def test_nothing_is_deleted_that_nobody_has_any_more(cli: Cli, hub: HubServer, home: Path) -> None:
    files = two_shards()
    commit = hub.add_model(REPO, files, hosts=("huggingface",))
    assert cli("pull", REPO, ACCEPT).code == 0
    damage(home, commit)
    hub.add_model(REPO, {**files, "config.json": CONFIG + b" "})
    hub.forget_commit(REPO, commit)
    assert cli("verify", REPO, "--repair").code == 3
    assert set(contents(snapshot(home, commit))) == set(files)


def test_a_long_wait_is_told_rather_than_waited(cli: Cli, hub: HubServer) -> None:
    hub.add_model(REPO, two_shards())
    hub.faults.status, hub.faults.status_on, hub.faults.status_times = 429, "api", -1
    hub.faults.retry_after = "600"
    alone = cli("pull", REPO, ACCEPT, "--source", "huggingface")
    assert (alone.code, "HTTP 429" in alone.stderr) == (3, True)
    assert cli("pull", REPO, ACCEPT).code == 0  # from the other source


def test_the_plan_is_json_too(cli: Cli, hub: HubServer) -> None:
    hub.add_model(REPO, two_shards())
    assert json.loads(cli("pull", REPO, "--dry-run", "--json").stdout)["fit"] is None


def test_a_snapshot_that_leads_elsewhere_is_left_alone(
    cli: Cli, hub: HubServer, home: Path
) -> None:
    commit = hub.add_model(REPO, two_shards())
    assert cli("pull", REPO, ACCEPT).code == 0
    mine = blobs(home).parent / "other" / "mine"  # where its links still lead to the blobs
    mine.parent.mkdir()
    snapshot(home, commit).rename(mine)
    (mine / "thesis.txt").write_text("precious")
    snapshot(home, commit).symlink_to(mine)
    assert cli("rm", REPO, "--yes").code == 0
    assert (mine / "thesis.txt").read_text() == "precious"
    assert not os.path.lexists(snapshot(home, commit))


def test_a_broken_file_that_no_model_needs_goes(cli: Cli, hub: HubServer, home: Path) -> None:
    from huggingface_hub import constants, hf_hub_download

    commit = hub.add_model(REPO, {**two_shards(), "README.md": b"# card"})
    assert cli("pull", REPO, ACCEPT).code == 0
    hf_hub_download(REPO, "README.md", cache_dir=constants.HF_HUB_CACHE, endpoint=hub.url)
    (snapshot(home, commit) / "README.md").resolve().write_bytes(b"# carx")
    assert cli("verify", REPO).code == 4
    result = cli("verify", REPO, "--repair")
    assert result.code == 0, result.stderr
    assert set(contents(snapshot(home, commit))) == set(two_shards())


def test_a_half_file_that_becomes_shorter_is_an_error(tmp_path: Path, hub: HubServer) -> None:
    data = noise(PART)
    file = partial(tmp_path, data)
    file.receive(file.table.parts[0], body(data, 0))
    os.truncate(next(tmp_path.glob("*.part")), 0)
    with pytest.raises(OSError, match="shorter"):
        finished(file)
    file.close()
