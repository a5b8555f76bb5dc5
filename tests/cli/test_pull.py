"""`xverse pull` against a look-alike of the Hub, driven by the real huggingface_hub client."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from tests.cli.conftest import Cli
from tests.cli.pull_support import (
    CONFIG,
    HURRIED,
    PART,
    REPO,
    contents,
    hub,
    noise,
    snapshot,
    two_shards,
)
from tests.hub_server import HubServer

__all__ = ["hub"]
ACCEPT = "--accept-license"


def test_everything_the_runtime_needs_arrives_as_it_is(
    cli: Cli, hub: HubServer, home: Path
) -> None:
    files = two_shards()
    commit = hub.add_model(REPO, {**files, "README.md": b"# card", "extra/x.bin": b"x"})
    result = cli("pull", REPO, ACCEPT)
    assert result.code == 0, result.stderr
    assert contents(snapshot(home, commit)) == files
    assert result.stdout.decode().strip() == str(snapshot(home, commit))
    assert "Fetched and checked" in result.stderr


def test_a_second_pull_fetches_nothing(cli: Cli, hub: HubServer) -> None:
    hub.add_model(REPO, two_shards())
    assert cli("pull", REPO, ACCEPT).code == 0
    served = hub.served_bytes
    result = cli("pull", REPO)
    assert result.code == 0
    assert hub.served_bytes == served
    assert "up to date" in result.stderr


def test_other_tools_find_what_was_fetched(cli: Cli, hub: HubServer) -> None:
    from huggingface_hub import scan_cache_dir, snapshot_download, try_to_load_from_cache

    files = two_shards()
    hub.add_model(REPO, files)
    assert cli("pull", REPO, ACCEPT).code == 0
    found = snapshot_download(REPO, local_files_only=True, cache_dir=_cache())
    assert contents(Path(found)) == files
    loaded = try_to_load_from_cache(REPO, "config.json", cache_dir=_cache())
    assert isinstance(loaded, str)
    scanned = scan_cache_dir(_cache())
    assert not scanned.warnings
    assert [one.repo_id for one in scanned.repos] == [REPO]


def test_what_other_tools_fetched_is_not_fetched_again(
    cli: Cli, hub: HubServer, home: Path
) -> None:
    from huggingface_hub import hf_hub_download

    files = two_shards()
    commit = hub.add_model(REPO, files)
    for name in files:
        hf_hub_download(REPO, name, cache_dir=_cache(), endpoint=hub.url)
    served = hub.served_bytes
    assert cli("pull", REPO, ACCEPT).code == 0
    assert hub.served_bytes == served
    assert contents(snapshot(home, commit)) == files


def _cache() -> str:
    from huggingface_hub import constants

    return str(constants.HF_HUB_CACHE)


def test_safetensors_go_before_pickles_of_the_same_weights(
    cli: Cli, hub: HubServer, home: Path
) -> None:
    files = {
        "config.json": CONFIG,
        "model.safetensors": noise(100),
        "pytorch_model.bin": noise(100),
        "modeling_xverse.py": b"'Human: '",
        "configuration_xverse.py": b"",
        "MODEL_LICENSE.pdf": b"terms",
        "tf_model.h5": b"x",
    }
    commit = hub.add_model(REPO, files)
    assert cli("pull", REPO, ACCEPT).code == 0
    kept = {"config.json", "model.safetensors", "modeling_xverse.py", "MODEL_LICENSE.pdf"}
    assert set(contents(snapshot(home, commit))) == kept


def test_a_revision(cli: Cli, hub: HubServer, home: Path) -> None:
    old = hub.add_model(REPO, two_shards(), branch="v1")
    hub.add_model(REPO, {**two_shards(), "config.json": CONFIG + b" "})
    for name in ("v1", old):
        assert cli("pull", f"{REPO}@{name}", ACCEPT).code == 0
    assert contents(snapshot(home, old)) == two_shards()
    refs = snapshot(home, old).parents[1] / "refs"
    assert (refs / "v1").read_text() == old
    assert not (refs / old).exists()


# Before the first byte.


def test_a_dry_run_tells_everything_and_writes_nothing(
    cli: Cli, hub: HubServer, home: Path, golden: Path
) -> None:
    config = (golden / "moe-bin" / "config.json").read_bytes()
    hub.add_model(REPO, {**two_shards(), "config.json": config}, licence="xverse-model-license")
    before = sorted(home.rglob("*"))
    result = cli("pull", REPO, "--dry-run")
    assert result.code == 0
    told = result.stdout.decode()
    for part in (REPO, "2 of them weights", "int4", "no GPU", "free", "xverse-model-license"):
        assert part in told
    assert sorted(home.rglob("*")) == before
    assert not hub.asked("cdn")


def test_a_dry_run_as_json(cli: Cli, hub: HubServer, golden: Path) -> None:
    config = (golden / "moe-bin" / "config.json").read_bytes()
    files = {**two_shards(), "config.json": config}
    commit = hub.add_model(REPO, files)
    plan = cli("pull", REPO, "--dry-run", "--json", "--precision", "int4", "--context", "64").json
    assert plan["commit"] == commit
    assert plan["total_bytes"] == plan["fetch_bytes"] == sum(map(len, files.values()))
    assert {one["name"] for one in plan["files"]} == set(files)
    assert [row["precision"] for row in plan["fit"]["precisions"]] == ["bf16", "int8", "int4"]
    assert plan["fit"]["context"] == 64
    assert plan["conversion"]["precision"] == "int4"
    assert plan["licence"] == {"card": "other", "accepted": None}
    assert plan["pulled"] is None


def test_the_sizes_of_the_fit_are_those_of_the_stores(golden: Path, tmp_path: Path) -> None:
    from xverse_cli.models.machine_fit import machine_fit
    from xverse_runtime.store.convert import convert_checkpoint
    from xverse_runtime.store.precision import PRESETS

    fit = machine_fit((golden / "moe-bin" / "config.json").read_bytes(), None)
    assert fit is not None
    for row in fit.rows:
        out = tmp_path / row.precision
        convert_checkpoint(golden / "moe-bin", out, PRESETS[row.precision])
        assert sum(one.stat().st_size for one in out.glob("*.safetensors")) == row.weight_bytes


def test_a_full_disk_is_noticed_before_the_first_byte(
    cli: Cli, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add_model(REPO, two_shards())
    monkeypatch.setattr("xverse_cli.models.pull_plan.free_bytes", lambda place: 1000)
    result = cli("pull", REPO, ACCEPT)
    assert result.code == 5
    assert "Not enough space" in result.stderr
    assert "1000 bytes free" in result.stderr
    assert not hub.asked("cdn")


def test_the_licence_is_asked_for_once(cli: Cli, hub: HubServer) -> None:
    hub.add_model(REPO, two_shards())
    refused = cli("pull", REPO)
    assert refused.code == 2
    assert f"xverse pull {REPO} --accept-license" in refused.stderr
    declined = cli("pull", REPO, stdin=b"n\n", terminal="ie")
    assert declined.code == 2
    assert "Model License Agreement" in declined.stderr
    assert not hub.asked("cdn")
    assert cli("pull", REPO, stdin=b"y\n", terminal="ie").code == 0
    hub.add_model(REPO, {**two_shards(), "config.json": CONFIG + b" "})
    assert cli("pull", REPO).code == 0


def test_demo_and_directories_are_not_pulled(cli: Cli, tmp_path: Path) -> None:
    assert cli("pull", "demo").code == 2
    assert "no Hub id" in cli("pull", str(tmp_path)).stderr
    assert cli("pull", REPO, "--delete-source").code == 2


# What can go wrong.


def pulled(cli: Cli, hub: HubServer, home: Path, *options: str) -> str:
    """Pull a model through the faults that are set, and see that it is whole; what was said."""
    files = two_shards()
    commit = hub.add_model(REPO, files)
    result = cli("pull", REPO, ACCEPT, *options)
    assert result.code == 0, result.stderr
    assert contents(snapshot(home, commit)) == files
    work = snapshot(home, commit).parents[1] / ".xverse"
    assert {one.name for one in work.iterdir()} == {"pull.json", "pull.lock"}
    return result.stderr


def test_cut_connections(cli: Cli, hub: HubServer, home: Path) -> None:
    hub.faults.cut_after, hub.faults.cut_times = PART // 3, 25
    pulled(cli, hub, home)
    size = sum(map(len, two_shards().values()))
    assert hub.served_bytes < 1.5 * size


def test_a_stalled_connection(cli: Cli, hub: HubServer, home: Path) -> None:
    hub.faults.stall_after, hub.faults.stall_times = 1000, 2
    pulled(cli, hub, home)


def test_wrong_bytes_once(cli: Cli, hub: HubServer, home: Path) -> None:
    hub.faults.flip_at, hub.faults.flip_times = 3 * PART + 5, 1
    assert "wrong bytes" in pulled(cli, hub, home)


def test_wrong_bytes_always(cli: Cli, hub: HubServer, home: Path) -> None:
    files = two_shards()
    commit = hub.add_model(REPO, files)
    hub.faults.flip_at, hub.faults.flip_times = 5, -1
    result = cli("pull", REPO, ACCEPT)
    assert result.code == 4
    assert "SHA-256" in result.stderr
    assert "pytorch_model-00001-of-00002.bin" not in contents(snapshot(home, commit))
    hub.faults.flip_times = 0
    assert cli("pull", REPO, ACCEPT).code == 0
    assert contents(snapshot(home, commit)) == files


@pytest.mark.parametrize("status", [429, 500, 503])
@pytest.mark.parametrize("kind", ["api", "resolve", "cdn"])
def test_busy_servers(cli: Cli, hub: HubServer, home: Path, status: int, kind: str) -> None:
    hub.faults.status, hub.faults.status_on, hub.faults.status_times = status, kind, 2
    hub.faults.retry_after = "0"
    pulled(cli, hub, home)


def test_links_that_expire(cli: Cli, hub: HubServer, home: Path) -> None:
    hub.faults.rate = 40 * PART
    timer = threading.Timer(0.1, hub.expire_links)
    timer.start()
    pulled(cli, hub, home, "--jobs", "2")
    timer.join()


def test_a_mirror_that_ignores_ranges(cli: Cli, hub: HubServer, home: Path) -> None:
    hub.faults.no_ranges = True
    said = pulled(cli, hub, home)
    assert "no parts of files" in said
    assert hub.served_bytes < 1.2 * 8 * sum(map(len, two_shards().values()))


def test_ranges_ignored_and_connections_cut(cli: Cli, hub: HubServer, home: Path) -> None:
    hub.faults.no_ranges = True
    hub.faults.cut_after, hub.faults.cut_times = 4 * PART, 3
    pulled(cli, hub, home)


def test_one_connection(cli: Cli, hub: HubServer, home: Path) -> None:
    pulled(cli, hub, home, "--jobs", "1")


def test_the_token_stays_with_the_hub(
    cli: Cli, hub: HubServer, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_good")
    hub.tokens.add("hf_good")
    hub.add_model(REPO, two_shards(), private=True)
    assert cli("pull", REPO, ACCEPT).code == 0
    resolved = hub.asked("hub", "/resolve/")
    assert resolved
    assert all(one.headers.get("Authorization") == "Bearer hf_good" for one in resolved)
    assert hub.asked("cdn")
    assert not any("Authorization" in one.headers for one in hub.asked("cdn"))


def test_refusals_are_explained(cli: Cli, hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add_model(REPO, two_shards(), gated=True)
    hub.add_model("xverse/other", two_shards())
    hub.add_model("xverse/empty", {"README.md": b""})
    gated = cli("pull", REPO, ACCEPT)
    assert (gated.code, "hf auth login" in gated.stderr) == (3, True)
    missing = cli("pull", "xverse/nowhere", ACCEPT)
    assert (missing.code, "Check the name" in missing.stderr) == (3, True)
    revision = cli("pull", "xverse/other@v9", ACCEPT)
    assert (revision.code, "no revision v9" in revision.stderr) == (3, True)
    empty = cli("pull", "xverse/empty", ACCEPT)
    assert (empty.code, "no model that can be run" in empty.stderr) == (3, True)
    hub.faults.status, hub.faults.status_on, hub.faults.status_times = 403, "resolve", -1
    forbidden = cli("pull", "xverse/other", ACCEPT)
    assert (forbidden.code, "HTTP 403" in forbidden.stderr) == (3, True)
    hub.faults.status_times = 0
    monkeypatch.setenv("HF_TOKEN", "hf_bad")
    hub.tokens.add("hf_good")
    bad = cli("pull", "xverse/other", ACCEPT)
    assert (bad.code, "token" in bad.stderr) == (3, True)


def test_patience_ends_and_nothing_is_lost(cli: Cli, hub: HubServer, home: Path) -> None:
    files = two_shards()
    commit = hub.add_model(REPO, files, hosts=("huggingface",))
    hub.faults.cut_after, hub.faults.cut_times = 3000, -1
    hub.faults.status, hub.faults.status_on = 503, "cdn"
    for _ in range(40):
        hub.faults.status_times = 0 if _ % 2 else 100
        result = cli("pull", REPO, ACCEPT, "--source", "huggingface")
        if result.code == 0:
            break
        assert result.code == 3
        assert "what has come is kept" in result.stderr
        hub.faults.cut_after *= 4
    assert contents(snapshot(home, commit)) == files
    assert hub.served_bytes < 1.3 * sum(map(len, files.values()))


# Sources.


def test_modelscope_takes_over_where_the_hub_cannot_be_reached(
    cli: Cli, hub: HubServer, home: Path
) -> None:
    files = two_shards()
    hub.add_model(REPO, files)
    hub.faults.down = ("hub",)
    result = cli("pull", REPO, ACCEPT)
    assert result.code == 0, result.stderr
    assert "Trying modelscope" in result.stderr
    (only,) = (home / "hub" / f"models--{REPO.replace('/', '--')}" / "snapshots").iterdir()
    assert contents(only) == files
    hub.faults.down = ()
    served = hub.served_bytes
    assert cli("pull", REPO, ACCEPT).code == 0
    small = sum(len(data) for name, data in files.items() if not name.endswith(".bin"))
    small += len(CONFIG)  # read once more, for the plan
    assert hub.served_bytes - served <= small  # weights of the same SHA-256 are there already


def test_modelscope_by_name(cli: Cli, hub: HubServer) -> None:
    hub.add_model(REPO, two_shards())
    assert cli("pull", REPO, ACCEPT, "--source", "modelscope").code == 0
    assert not hub.asked("cdn")
    missing = cli("pull", "xverse/nowhere", ACCEPT, "--source", "modelscope")
    assert missing.code == 3
    revision = cli("pull", f"{REPO}@v9", ACCEPT, "--source", "modelscope")
    assert (revision.code, "no revision v9" in revision.stderr) == (3, True)


def test_the_hub_alone_does_not_fall_back(cli: Cli, hub: HubServer) -> None:
    hub.add_model(REPO, two_shards())
    hub.faults.down = ("hub",)
    result = cli("pull", REPO, ACCEPT, "--source", "huggingface")
    assert result.code == 3
    assert "cannot be reached" in result.stderr


def test_another_source_finishes_a_file_of_the_same_sha256(
    cli: Cli, hub: HubServer, home: Path
) -> None:
    hub.faults.status, hub.faults.status_on, hub.faults.status_times = 503, "cdn", -1
    said = pulled(cli, hub, home)
    assert "another source" in said


def test_another_source_with_other_bytes_does_not(cli: Cli, hub: HubServer) -> None:
    hub.add_model(REPO, two_shards(), hosts=("huggingface",))
    hub.faults.status, hub.faults.status_on, hub.faults.status_times = 503, "cdn", -1
    assert cli("pull", REPO, ACCEPT).code == 3


# Time passes.


@pytest.fixture
def half_done(cli: Cli, hub: HubServer) -> str:
    """The commit of a download that was left in the middle."""
    commit = hub.add_model(REPO, two_shards(), hosts=("huggingface",))
    hub.faults.cut_after, hub.faults.cut_times = PART // 2, 4
    hub.faults.status, hub.faults.status_on, hub.faults.status_times = 500, "cdn", 0
    requests = len(hub.requests)
    original = hub.count

    def count(served: int) -> None:
        original(served)
        if hub.served_bytes > 5 * PART:
            hub.faults.status_times = -1
            hub.faults.cut_times, hub.faults.cut_after = -1, 1

    hub.count = count  # type: ignore[method-assign]
    assert cli("pull", REPO, ACCEPT, "--jobs", "1").code == 3
    assert len(hub.requests) > requests
    hub.count = original  # type: ignore[method-assign]
    hub.faults.status_times = hub.faults.cut_times = 0
    return commit


def test_a_branch_that_moves_on_does_not_disturb_a_download(
    cli: Cli, hub: HubServer, home: Path, half_done: str
) -> None:
    new = hub.add_model(REPO, {**two_shards(), "config.json": CONFIG + b" "})
    result = cli("pull", REPO, ACCEPT)
    assert result.code == 0, result.stderr
    assert "has moved on" in result.stderr
    assert contents(snapshot(home, half_done)) == two_shards()
    assert cli("pull", REPO, ACCEPT).code == 0
    assert contents(snapshot(home, new))["config.json"] == CONFIG + b" "


def test_a_commit_that_is_gone(cli: Cli, hub: HubServer, home: Path, half_done: str) -> None:
    files = two_shards()
    first = "pytorch_model-00001-of-00002.bin"
    new = hub.add_model(REPO, {**files, first: noise(3 * PART, 7)})
    hub.forget_commit(REPO, half_done)
    result = cli("pull", REPO, ACCEPT)
    assert result.code == 0, result.stderr
    assert "is gone" in result.stderr
    assert contents(snapshot(home, new))[first] == noise(3 * PART, 7)
    work = snapshot(home, new).parents[1] / ".xverse"
    assert {one.name for one in work.iterdir()} == {"pull.json", "pull.lock"}


def test_what_was_fetched_before_counts(
    cli: Cli, hub: HubServer, home: Path, half_done: str
) -> None:
    served = hub.served_bytes
    result = cli("pull", REPO, ACCEPT)
    assert "here already" in result.stderr
    size = sum(map(len, two_shards().values()))
    assert served <= 6 * PART + 5000
    assert hub.served_bytes <= size + PART


def test_without_a_network_what_is_there_will_do(
    cli: Cli, hub: HubServer, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add_model(REPO, two_shards())
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    offline = cli("pull", REPO, ACCEPT)
    assert (offline.code, "HF_HUB_OFFLINE" in offline.stderr) == (3, True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    assert cli("pull", REPO, ACCEPT).code == 0
    hub.faults.down = ("hub", "cdn", "modelscope")
    requests = len(hub.requests)
    kept = cli("pull", REPO)
    assert (kept.code, "is here" in kept.stderr) == (0, True)
    assert cli("pull", "xverse/other", ACCEPT).code == 3
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    requests = len(hub.requests)
    assert cli("pull", REPO).code == 0
    assert len(hub.requests) == requests


def test_an_index_that_names_what_is_not_there(cli: Cli, hub: HubServer) -> None:
    files = two_shards()
    del files["pytorch_model-00002-of-00002.bin"]
    hub.add_model(REPO, files)
    result = cli("pull", REPO, ACCEPT)
    assert result.code == 4
    assert "pytorch_model-00002-of-00002.bin" in result.stderr
    assert not hub.asked("cdn")


def test_json_of_a_pull(cli: Cli, hub: HubServer, home: Path) -> None:
    commit = hub.add_model(REPO, two_shards())
    result = cli("pull", REPO, ACCEPT, "--json", "-q")
    assert json.loads(result.stdout)["pulled"] == str(snapshot(home, commit))
    assert result.stderr == ""


def test_the_fit_is_the_same_in_a_process_of_its_own(
    golden: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    from xverse_cli.models.machine_fit import machine_fit, machine_fit_apart

    config = (golden / "moe-bin" / "config.json").read_bytes()
    here = machine_fit(config, 100)
    monkeypatch.delitem(sys.modules, "torch")
    assert machine_fit_apart(config, 100) == here
    assert machine_fit_apart(b"{}", None) is None
    assert machine_fit_apart(b"no JSON", None) is None


def test_an_endpoint_without_its_scheme(
    cli: Cli, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "hf-mirror.com")
    result = cli("pull", REPO, ACCEPT)
    assert (result.code, "HF_ENDPOINT=https://hf-mirror.com" in result.stderr) == (2, True)


def test_a_repair_without_a_network_changes_nothing(cli: Cli, hub: HubServer, home: Path) -> None:
    commit = hub.add_model(REPO, two_shards())
    assert cli("pull", REPO, ACCEPT).code == 0
    blob = (snapshot(home, commit) / "tokenizer.json").resolve()
    blob.write_bytes(b"[]")
    hub.faults.down = ("hub", "cdn", "modelscope")
    result = cli("verify", REPO, "--repair")
    assert (result.code, "cannot be reached" in result.stderr) == (3, True)
    assert blob.read_bytes() == b"[]"


def test_a_blocked_hub_is_asked_once_and_a_busy_one_again(home: Path) -> None:
    from xverse_cli.models.download.huggingface import TRIES, HuggingFace
    from xverse_cli.models.download.patience import Patience
    from xverse_cli.models.download.remote import UnreachableError

    blocked = type("ConnectTimeout", (OSError,), {})  # as requests and httpx call it
    asked: list[type[Exception]] = []

    def failing(kind: type[Exception]) -> None:
        def ask() -> None:
            asked.append(kind)
            raise kind("no answer")

        with pytest.raises(UnreachableError):
            HuggingFace(Patience(), sleep=lambda _: None)._patiently(ask, REPO, "main")

    failing(blocked)
    failing(ConnectionResetError)
    assert asked == [blocked, *[ConnectionResetError] * TRIES]


def test_how_far_another_process_is_can_be_seen(hub: HubServer, home: Path) -> None:
    """Also where it packs weight files as they come, and deletes them."""
    from tests.cli.models_support import begin
    from xverse_cli.models import pull
    from xverse_cli.models.sources import Route, chosen_sources

    class Nobody:
        def show(self, statuses: object) -> None: ...

        def note(self, note: object) -> None: ...

    files = two_shards()
    commit = hub.add_model(REPO, files)
    first, second = (f"pytorch_model-0000{number}-of-00002.bin" for number in (1, 2))
    route = Route(chosen_sources("huggingface", {}, HURRIED), REPO, "main", lambda note: None)
    job = pull.Pull(route, 1, HURRIED, Nobody())
    plan = job.plan(None, lambda *_: None)
    gone: set[str] = set()

    def done() -> dict[str, int]:
        return {one.name: one.done for one in job.statuses_of_another(plan, gone) if one.done}

    assert done() == {}
    digest = begin(job.folder, first, files[first], commit)
    assert done() == {first: len(files[first]) // 2}
    job.folder.drop_unfinished(digest)
    job.folder.blobs.mkdir(parents=True)
    (job.folder.blobs / digest).write_bytes(files[first])
    assert done() == {first: len(files[first])}
    (job.folder.blobs / digest).unlink()
    begin(job.folder, second, files[second], commit)
    assert done() == {first: len(files[first]), second: len(files[second]) // 2}
