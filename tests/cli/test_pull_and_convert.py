"""Models that arrive and become stores, and stores that arrive; chats that fetch what they lack."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import pytest

from tests.cli.conftest import Cli
from tests.cli.pull_support import REPO, contents, golden_files, hub, snapshot
from tests.hub_server import HubServer
from xverse_cli.models.stores import stores_dir
from xverse_runtime.store.convert import convert_checkpoint
from xverse_runtime.store.precision import PRESETS

__all__ = ["golden_files", "hub"]
ACCEPT = "--accept-license"


def test_pull_and_convert(
    cli: Cli, hub: HubServer, home: Path, golden_files: dict[str, bytes]
) -> None:
    commit = hub.add_model(REPO, golden_files)
    result = cli("pull", REPO, ACCEPT, "--precision", "int8")
    assert result.code == 0, result.stderr
    store = stores_dir() / "xverse--XVERSE-Test-Chat-int8"
    assert result.stdout.decode().strip() == str(store)
    assert contents(snapshot(home, commit)) == golden_files
    assert cli("verify", str(store)).code == 0
    again = cli("pull", REPO, ACCEPT, "--precision", "int8")
    assert (again.code, "Converted already" in again.stderr) == (0, True)


def test_packed_as_it_comes(cli: Cli, hub: HubServer, home: Path, tmp_path: Path) -> None:
    from tests.runtime.test_store_streaming import publish

    publish("moe-bin", tmp_path / "published", "bin", 6)
    files = contents(tmp_path / "published")
    commit = hub.add_model(REPO, files)
    folder = snapshot(home, commit).parents[1]
    on_disk: list[int] = []
    original = hub.count

    def count(served: int) -> None:
        original(served)
        on_disk.append(occupied(folder) + occupied(stores_dir()))

    hub.count = count  # type: ignore[method-assign]
    result = cli("pull", REPO, ACCEPT, "--precision", "int4", "--delete-source")
    assert result.code == 0, result.stderr
    store = stores_dir() / "xverse--XVERSE-Test-Chat-int4"
    assert set(contents(snapshot(home, commit))) == {
        one for one in files if "pytorch_model" not in one
    }
    assert not any(len(one.name) == 64 for one in (folder / "blobs").iterdir())
    shards = sorted(len(data) for name, data in files.items() if name.endswith(".bin"))
    small = sum(map(len, files.values())) - sum(shards)
    assert len(on_disk) > 50
    assert max(on_disk) <= occupied(store) + sum(shards[-2:]) + small + 2**17  # whole blocks
    assert max(on_disk) < sum(shards)

    whole = tmp_path / "models--xverse--XVERSE-Test-Chat" / "snapshots" / commit
    whole.mkdir(parents=True)
    for name, data in files.items():
        (whole / name).write_bytes(data)
    convert_checkpoint(whole, tmp_path / "same", PRESETS["int4"], source_name=REPO)
    assert contents(store) == contents(tmp_path / "same")


def occupied(folder: Path) -> int:
    """Bytes of disk under a folder, while others write and delete there."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                total += os.lstat(os.path.join(place, name)).st_blocks * 512
    return total


def test_packing_goes_on_after_an_interruption(
    cli: Cli, hub: HubServer, home: Path, golden_files: dict[str, bytes]
) -> None:
    commit = hub.add_model(REPO, golden_files, hosts=("huggingface",))
    command = ("pull", REPO, ACCEPT, "--precision", "int4", "--delete-source", "--jobs", "1")
    second = sorted(name for name in golden_files if name.endswith(".bin"))[1]
    hub.faults.status, hub.faults.status_on = 404, "cdn"
    original = hub.count

    def count(count: int) -> None:
        original(count)
        all_but_second = sum(map(len, golden_files.values())) - len(golden_files[second])
        hub.faults.status_times = -1 if hub.served_bytes >= all_but_second else 0

    hub.count = count  # type: ignore[method-assign]
    failed = cli(*command)
    assert failed.code == 3, failed.stderr
    hub.count = original  # type: ignore[method-assign]
    hub.faults.status_times = 0
    before = hub.served_bytes
    result = cli(*command)
    assert result.code == 0, result.stderr
    assert hub.served_bytes - before <= len(golden_files[second]) + 20_000
    assert cli("verify", str(stores_dir() / "xverse--XVERSE-Test-Chat-int4")).code == 0
    assert not list(snapshot(home, commit).glob("*.bin"))


def test_a_store_that_somebody_published(
    cli: Cli, hub: HubServer, home: Path, golden: Path, tmp_path: Path
) -> None:
    convert_checkpoint(golden / "moe-bin", tmp_path / "store", PRESETS["int4"])
    files = contents(tmp_path / "store")
    commit = hub.add_model("someone/XVERSE-int4", {**files, "README.md": b"# int4"})
    result = cli("pull", "someone/XVERSE-int4", ACCEPT)
    assert result.code == 0, result.stderr
    assert "a converted model" in result.stderr
    assert contents(snapshot(home, commit, "someone/XVERSE-int4")) == files
    from xverse_cli.models.find import find_model

    found = find_model("someone/XVERSE-int4", "auto")
    assert found.path == snapshot(home, commit, "someone/XVERSE-int4")


def test_what_was_pulled_runs_without_a_network(
    hub: HubServer, cli: Cli, golden: Path, golden_files: dict[str, bytes]
) -> None:
    from tests.cli.conftest import memory_stream, written
    from xverse_cli.app import run
    from xverse_cli.host import Host
    from xverse_cli.streams import Streams

    hub.add_model(REPO, golden_files)
    assert cli("pull", REPO, ACCEPT).code == 0
    hub.faults.down = ("hub", "cdn", "modelscope")
    requests = len(hub.requests)
    streams = Streams(memory_stream(), memory_stream(), memory_stream())
    argv = ["generate", "-m", REPO, "--raw", "hello", "--max-tokens", "3", "--device", "cpu"]
    assert run(argv, Host(streams, dict(os.environ))) == 0, written(streams.stderr)
    assert written(streams.stdout)
    assert len(hub.requests) == requests


# Without weights.


def test_a_chat_without_weights_offers_to_fetch_them(
    cli: Cli, hub: HubServer, home: Path, golden_files: dict[str, bytes]
) -> None:
    commit = hub.add_model(REPO, golden_files)
    result = cli("generate", "-m", REPO, "hello", stdin=b"y\ny\n", terminal="ie")
    assert result.code == 0, result.stderr
    for part in ("is not on this machine", "fits the memory", "Fetch it now"):
        assert part in result.stderr
    assert contents(snapshot(home, commit)) == golden_files
    assert result.engine.prompts


def test_no_is_an_answer(cli: Cli, hub: HubServer, golden_files: dict[str, bytes]) -> None:
    hub.add_model(REPO, golden_files)
    result = cli("generate", "-m", REPO, "hello", stdin=b"\n", terminal="ie")
    assert result.code == 3
    assert f"xverse pull {REPO}" in result.stderr
    assert not hub.asked("cdn")


def test_nobody_at_the_terminal(cli: Cli, hub: HubServer, golden_files: dict[str, bytes]) -> None:
    hub.add_model(REPO, golden_files)
    result = cli("chat", "-m", REPO, stdin=b"hello\n")
    assert result.code == 3
    assert f"Fetch it: xverse pull {REPO}" in result.stderr
    assert "--model demo" in result.stderr
    assert not hub.requests


def test_an_offer_without_a_network(cli: Cli, hub: HubServer) -> None:
    hub.faults.down = ("hub", "modelscope")
    result = cli("generate", "-m", REPO, "hello", stdin=b"y\n", terminal="ie")
    assert result.code == 3
    assert "cannot be reached" in result.stderr
    assert "--model demo" in result.stderr


def test_an_unfinished_download_is_named_so(
    cli: Cli, hub: HubServer, golden_files: dict[str, bytes]
) -> None:
    hub.add_model(REPO, golden_files, hosts=("huggingface",))
    hub.faults.status, hub.faults.status_on, hub.faults.status_times = 404, "cdn", -1
    assert cli("pull", REPO, ACCEPT).code == 3
    result = cli("generate", "-m", REPO, "hello")
    assert result.code == 3
    assert "incomplete" in result.stderr
    assert f"xverse pull {REPO}" in result.stderr


def test_what_was_begun_packed_is_gone_on_with(
    cli: Cli, hub: HubServer, home: Path, golden_files: dict[str, bytes]
) -> None:
    commit = hub.add_model(REPO, golden_files, hosts=("huggingface",))
    hub.faults.down = ("cdn",)
    command = ("pull", REPO, ACCEPT, "--precision", "int4", "--delete-source")
    assert cli(*command).code == 3
    told = cli("chat", "-m", REPO, stdin=b"hello\n")
    assert told.code == 3
    assert f"xverse pull {REPO} --precision int4 --delete-source" in told.stderr
    hub.faults.down = ()
    declined = cli("generate", "hi", "-m", REPO, stdin=b"n\n", terminal="ie")
    assert declined.code == 3
    result = cli("generate", "hi", "-m", REPO, stdin=b"\n", terminal="ie")
    assert result.code == 0, result.stderr
    assert "packing it to int4 was interrupted" in result.stderr
    assert not list(snapshot(home, commit).glob("*.bin"))
    assert (stores_dir() / "xverse--XVERSE-Test-Chat-int4").is_dir()


def test_a_resumed_packing_says_how_far_it_is_in_one_line(
    cli: Cli, hub: HubServer, golden_files: dict[str, bytes]
) -> None:
    hub.add_model(REPO, golden_files, hosts=("huggingface",))
    command = ("pull", REPO, ACCEPT, "--precision", "int4", "--delete-source")
    hub.faults.down = ("cdn",)
    first = cli(*command)
    assert first.code == 3
    assert "Licence of the weights" in first.stderr
    hub.faults.down = ()
    again = cli(*command, terminal="e")
    assert again.code == 0, again.stderr
    assert f"Going on with {REPO}, to be packed to int4" in " ".join(again.stderr.split())
    assert "Licence of the weights" not in again.stderr
    assert f"xverse chat -m {REPO}" in " ".join(again.stderr.split())


def test_the_offer_shows_what_each_precision_costs_and_gains(
    cli: Cli, hub: HubServer, golden_files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    from xverse_cli.models import pull
    from xverse_cli.models.machine_fit import FitRow, MachineFit

    rates = {"bf16": 2.1, "int8": 17.9, "int4": 38.8}
    rows = tuple(FitRow(name, 2**30, 2**20, False, True, rate) for name, rate in rates.items())
    fit = MachineFit(8192, 2**35, 2**33, "RTX 4060", rows)
    monkeypatch.setattr(pull, "machine_fit_apart", lambda *_, **__: fit)
    hub.add_model(REPO, golden_files)
    result = cli("generate", "hi", "-m", REPO, stdin=b"5\nint4\ny\n", terminal="ie")
    assert result.code == 0, result.stderr
    told = " ".join(result.stderr.split())
    assert "8: packed to int8 as it comes, 1.0 GiB on disk, about 17.9 tokens/s" in told
    assert "4: packed to int4 as it comes, 1.0 GiB on disk, about 38.8 tokens/s" in told
    assert "hardly change" in told
    assert told.count("[y/8/4/N]") == 2  # 5 is none of the answers
    assert (stores_dir() / "xverse--XVERSE-Test-Chat-int4").is_dir()


def test_the_precision_that_was_asked_for_is_offered(
    cli: Cli, hub: HubServer, golden_files: dict[str, bytes]
) -> None:
    hub.add_model(REPO, golden_files)
    argv = ("generate", "hi", "-m", REPO, "--precision", "int8")
    result = cli(*argv, stdin=b"y\ny\n", terminal="ie")
    assert result.code == 0, result.stderr
    assert (stores_dir() / "xverse--XVERSE-Test-Chat-int8").is_dir()
