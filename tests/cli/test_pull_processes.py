"""`xverse pull` as a process: killed, interrupted, two at a time."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cli.pull_support import REPO, contents, golden_files, noise, snapshot, two_shards
from tests.hub_server import HubServer

__all__ = ["golden_files"]
MAIN = Path(__file__).with_name("pull_main.py")
MIB = 2**20
# What may be on its way when a process is killed: both sockets' buffers, and what was just read.
LOST = MIB
JOBS = 4

Start = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with HubServer(send_buffer=2**17) as server:
        yield server


@pytest.fixture
def start(hub: HubServer, home: Path) -> Iterator[Start]:
    """`start("pull", …)`: a process that talks to the hub."""
    running: list[subprocess.Popen[bytes]] = []

    def call(*argv: str, **env: str) -> subprocess.Popen[bytes]:
        own = {
            "HF_HUB_OFFLINE": "0",
            "HF_ENDPOINT": hub.url,
            "HF_HUB_CACHE": str(home / "hub"),
            "MODELSCOPE_DOMAIN": hub.url,
            "TEST_NO_FIT": "1",
        }
        process = subprocess.Popen(
            [sys.executable, str(MAIN), *argv],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, **own, **env},
        )
        running.append(process)
        return process

    yield call
    for process in running:
        process.kill()
        process.communicate()


def pull(start: Start) -> subprocess.Popen[bytes]:
    return start("pull", REPO, "--accept-license", "--jobs", str(JOBS), "--source", "huggingface")


def wait_for(condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def kill_and_go_on(hub: HubServer, start: Start, home: Path, size: int, kills: int) -> int:
    """Pull ``size`` bytes through ``kills`` kills at random points; the bytes that were served."""
    files = {**two_shards(MIB), "pytorch_model-00001-of-00002.bin": noise(size, 1)}
    commit = hub.add_model(REPO, files)
    chance = random.Random(size)
    points = sorted(chance.uniform(0, size) for _ in range(kills))
    for point in points:
        process = pull(start)
        wait_for(lambda at=point, one=process: hub.served_bytes >= at or one.poll() is not None)  # type: ignore[misc]
        time.sleep(chance.uniform(0, 0.02))
        assert process.poll() in (None, 0), process.communicate()
        process.send_signal(signal.SIGKILL)
        process.communicate()
    process = pull(start)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 0, stderr.decode()
    assert contents(snapshot(home, commit)) == files
    total = sum(map(len, files.values()))
    assert hub.served_bytes <= total + LOST * JOBS * kills + 20_000 * kills
    return hub.served_bytes


def test_kills_lose_next_to_nothing(hub: HubServer, start: Start, home: Path) -> None:
    hub.faults.rate = 20 * MIB
    kill_and_go_on(hub, start, home, 24 * MIB, kills=3)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_three_kills_of_200_mb_within_one_twentieth(
    hub: HubServer, start: Start, home: Path
) -> None:
    hub.faults.rate = 60 * MIB
    served = kill_and_go_on(hub, start, home, 200_000_000, kills=3)
    assert served <= 1.05 * 200_000_000


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_thirty_kills(hub: HubServer, start: Start, home: Path) -> None:
    hub.faults.rate = 20 * MIB
    kill_and_go_on(hub, start, home, 200_000_000, kills=30)


def test_ctrl_c_leaves_what_can_go_on_and_says_how(
    hub: HubServer, start: Start, home: Path
) -> None:
    hub.faults.rate = 2 * MIB
    files = two_shards(12 * MIB)
    commit = hub.add_model(REPO, files)
    process = pull(start)
    wait_for(lambda: hub.served_bytes > 3 * MIB)
    process.send_signal(signal.SIGINT)
    interrupted = time.monotonic()
    _, stderr = process.communicate(timeout=20)
    assert time.monotonic() - interrupted < 5
    assert process.returncode == 130
    assert f"To go on: xverse pull {REPO}" in stderr.decode()
    hub.faults.rate = 0
    process = pull(start)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "here already" in stderr.decode()
    assert contents(snapshot(home, commit)) == files
    assert hub.served_bytes <= sum(map(len, files.values())) + LOST * JOBS + 20_000


def test_two_processes_one_download(hub: HubServer, start: Start, home: Path) -> None:
    hub.faults.rate = 4 * MIB
    files = two_shards(8 * MIB)
    commit = hub.add_model(REPO, files)
    first = pull(start)
    wait_for(lambda: hub.served_bytes > MIB)
    second = pull(start)
    outcomes = [process.communicate(timeout=60) for process in (first, second)]
    assert [first.returncode, second.returncode] == [0, 0], outcomes
    assert "Another process is fetching" in outcomes[1][1].decode()
    assert contents(snapshot(home, commit)) == files
    assert hub.served_bytes <= sum(map(len, files.values())) + 10_000


def test_the_waiting_one_goes_on_where_the_other_was_killed(
    hub: HubServer, start: Start, home: Path
) -> None:
    hub.faults.rate = 4 * MIB
    files = two_shards(8 * MIB)
    commit = hub.add_model(REPO, files)
    first = pull(start)
    wait_for(lambda: hub.served_bytes > 2 * MIB)
    second = pull(start)
    time.sleep(1.5)
    first.kill()
    _, stderr = second.communicate(timeout=60)
    assert second.returncode == 0, stderr.decode()
    assert contents(snapshot(home, commit)) == files
    assert hub.served_bytes <= sum(map(len, files.values())) + LOST * JOBS + 10_000


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_packing_as_it_comes_survives_kills(
    hub: HubServer, start: Start, home: Path, golden_files: dict[str, bytes], tmp_path: Path
) -> None:
    from xverse_runtime.store.convert import convert_checkpoint
    from xverse_runtime.store.precision import PRESETS

    files = golden_files
    commit = hub.add_model(REPO, files)
    hub.faults.rate = 2 * MIB
    command = ("pull", REPO, "--accept-license", "--precision", "int4", "--delete-source")
    chance = random.Random(5)
    for _ in range(8):
        process = start(*command)
        time.sleep(chance.uniform(1.0, 4.0))
        process.kill()
        process.communicate()
    process = start(*command)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 0, stderr.decode()
    whole = tmp_path / f"models--{REPO.replace('/', '--')}" / "snapshots" / commit
    whole.mkdir(parents=True)
    for name, data in files.items():
        (whole / name).write_bytes(data)
    convert_checkpoint(whole, tmp_path / "same", PRESETS["int4"], source_name=REPO)
    assert contents(Path(stdout.decode().strip())) == contents(tmp_path / "same")
    assert not list(snapshot(home, commit).glob("*.bin"))
