"""How fast `xverse pull` fetches a large file, beside `curl` followed by `sha256sum`.

    python -m bench.pull [--gb 3] [--rounds 3] [--folder DIR] [--markdown]

The server is a process of its own on loopback (`tests/hub_server.py`), so what is measured is the
client: receiving, writing and checking. Each round takes curl first, then `xverse pull` into an
empty cache, from the same server. The memory is the largest resident set of the process that
fetches; the one that looks at the machine (and imports torch, 230 MB) is over by then.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
REPO = "xverse/bench"
NAME = "model.safetensors"
PIECE = 2**24


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gb", type=float, default=3.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=8)
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--markdown", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="xverse-bench-") as name:
        folder = Path(name)
        size = make_model(folder / "model", options.gb)
        with server(folder / "model") as url:
            rounds = [measure(url, folder, size, options.jobs) for _ in range(options.rounds)]
    show(rounds, options.gb, options.markdown)


def make_model(folder: Path, gb: float) -> int:
    """A repository with one large file of noise; its bytes."""
    folder.mkdir()
    config = ROOT / "tests" / "golden" / "moe-bin" / "config.json"
    shutil.copy(config, folder / "config.json")
    size = int(gb * 1e9)
    with (folder / NAME).open("wb") as file:
        for start in range(0, size, PIECE):
            file.write(os.urandom(min(PIECE, size - start)))
    return size


@contextmanager
def server(model: Path) -> Iterator[str]:
    command = [sys.executable, str(ROOT / "tests" / "hub_server.py"), "--model", f"{REPO}={model}"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            yield json.loads(process.stdout.readline())["url"]
        finally:
            process.kill()


def measure(url: str, folder: Path, size: int, jobs: int) -> dict[str, float]:
    """Seconds of both ways, and the memory of ours in bytes."""
    target = folder / "curl"
    address = f"{url}/{REPO}/resolve/main/{NAME}"
    started = time.perf_counter()
    subprocess.run(["curl", "-sSL", "-o", str(target), address], check=True)
    subprocess.run(["sha256sum", str(target)], check=True, stdout=subprocess.DEVNULL)
    curl = time.perf_counter() - started
    started = time.perf_counter()
    os.sync()  # curl leaves that to the system; ours does not
    synced = time.perf_counter() - started
    target.unlink()
    cache = folder / "cache"
    env = {
        **os.environ,
        "HF_ENDPOINT": url,
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_CACHE": str(cache),
        "XDG_STATE_HOME": str(folder / "state"),
    }
    command = [sys.executable, "-m", "xverse_cli", "pull", REPO, "--accept-license", "-q"]
    command += ["--jobs", str(jobs), "--source", "huggingface"]
    started = time.perf_counter()
    with subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL) as process:
        memory = 0
        while process.poll() is None:
            memory = max(memory, peak_memory(process.pid))
            time.sleep(0.02)
    ours = time.perf_counter() - started
    assert process.returncode == 0
    shutil.rmtree(cache)
    return {
        "curl": curl,
        "synced": curl + synced,
        "xverse": ours,
        "memory": memory,
        "size": size,
    }


def peak_memory(process: int) -> int:
    """The largest resident set so far of a process, without its children, in bytes (Linux)."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), 0)


def show(rounds: list[dict[str, float]], gb: float, markdown: bool) -> None:
    def middle(key: str) -> float:
        return statistics.median(one[key] for one in rounds)

    def ratio(key: str) -> str:
        each = [one[key] / one["xverse"] for one in rounds]
        return f"{statistics.median(each):.2f} ({min(each):.2f}-{max(each):.2f})"

    rows = [
        ("curl, then sha256sum", f"{middle('curl'):.1f} s", f"{gb / middle('curl'):.2f} GB/s", ""),
        (
            "the same, on disk (sync)",
            f"{middle('synced'):.1f} s",
            f"{gb / middle('synced'):.2f} GB/s",
            "",
        ),
        (
            "xverse pull, checked and on disk",
            f"{middle('xverse'):.1f} s",
            f"{gb / middle('xverse'):.2f} GB/s",
            f"{middle('memory') / 1e6:.0f} MB",
        ),
    ]
    for row in rows:
        print(
            "| " + " | ".join(row) + " |" if markdown else "  ".join(cell.ljust(34) for cell in row)
        )
    print(f"\nspeed relative to curl and sha256sum: {ratio('curl')}; with sync: {ratio('synced')}")


if __name__ == "__main__":
    main()
