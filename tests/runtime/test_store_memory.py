"""Memory of converting and of running a store: as `bench/` measures at full size, but small."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from math import prod
from pathlib import Path

import pytest
import torch

from xverse_runtime.config import ModelConfig
from xverse_runtime.store.precision import PRESETS
from xverse_runtime.store.synthetic import A4_2B, write_synthetic_store
from xverse_runtime.tensors import expected_tensors

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

SHAPE = A4_2B | {
    "hidden_size": 640,
    "intermediate_size": 320,
    "num_attention_heads": 8,
    "num_hidden_layers": 4,
    "vocab_size": 2050,
}

# Maps the store, computes a token, touches every page of the experts; when asked, says what that
# takes: of the store's own mappings, and of memory of the process's own.
OPEN = """
import json, re, sys
import torch
from pathlib import Path
from xverse_runtime.config import EngineConfig
from xverse_runtime.engine import Engine

def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) * 1024

def mapped(folder):
    sizes, inside = {}, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if re.match("[0-9a-f]+-[0-9a-f]+ ", line):
            inside = folder in line
        elif inside and line.endswith("kB"):
            name, count = line.split(":")[0], int(line.split()[1])
            sizes[name] = sizes.get(name, 0) + count * 1024
    return sizes

before = anonymous()
engine = Engine.load(sys.argv[1], EngineConfig(device="cpu", context_length=64))
engine._decoder.forward([5], engine._cache)
experts = 0
for layer in engine._decoder._weights.layers:
    blocks = layer.mlp.experts.blocks
    experts += blocks.nbytes
    blocks[:, ::4096].sum(dtype=torch.int64)
print("ready", flush=True)
sys.stdin.readline()
own = anonymous() - before
print(json.dumps({"experts": experts, "own": own, **mapped(sys.argv[1])}), flush=True)
sys.stdin.readline()
"""


def test_two_processes_share_the_pages_of_a_store(tmp_path: Path, demo_dir: Path) -> None:
    store = tmp_path / "store"
    write_synthetic_store(SHAPE, store, PRESETS["int4"], demo_dir)
    command = [sys.executable, "-c", OPEN, str(store)]
    processes = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    reports: list[dict[str, int]] = []
    try:
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in processes:  # both still hold all their pages
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write("\n")
            process.stdin.flush()
            reports.append(json.loads(process.stdout.readline()))
    finally:
        for process in processes:
            process.communicate("\n", timeout=30)
    for report in reports:
        assert report["experts"] > 80e6
        assert report["Rss"] > report["experts"]
        private = report["Private_Dirty"] + report["Private_Clean"]
        assert private < 0.02 * report["experts"]
        assert report["Pss"] < 0.6 * report["Rss"]  # half of it each
        assert report["own"] < 0.5 * report["experts"]


CONVERT = """
import sys
from pathlib import Path
from bench.conversion import PeakAnonymousMemory
from xverse_runtime.store.convert import convert_checkpoint
from xverse_runtime.store.precision import PRESETS

def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) * 1024

before = anonymous()
with PeakAnonymousMemory() as peak:
    convert_checkpoint(Path(sys.argv[1]), Path(sys.argv[2]), PRESETS[sys.argv[3]], threads=2)
print(peak.bytes - before)
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ``.bin`` file a layer and one for the rest."""
    folder = tmp_path_factory.mktemp("checkpoint")
    pool = torch.randn(2**21, generator=torch.Generator().manual_seed(0)).bfloat16()
    shards: dict[str, dict[str, torch.Tensor]] = {}
    for name, shape in expected_tensors(ModelConfig.from_dict(SHAPE)).items():
        part = name.split(".")[2] if name.startswith("model.layers.") else "rest"
        shard = shards.setdefault(f"pytorch_model-{part}.bin", {})
        shard[name] = pool[: prod(shape)].view(shape).clone()
    for file, tensors in shards.items():
        torch.save(tensors, folder / file)
    weight_map = {name: file for file, tensors in shards.items() for name in tensors}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (folder / "config.json").write_text(json.dumps(SHAPE))
    return folder


@pytest.mark.parametrize("precision", ["bf16", "int4"])
def test_a_conversion_takes_a_fraction_of_the_weights(
    tmp_path: Path, checkpoint: Path, precision: str
) -> None:
    size = sum(file.stat().st_size for file in checkpoint.glob("*.bin"))
    assert size > 300e6
    command = [sys.executable, "-c", CONVERT, str(checkpoint), str(tmp_path / "store"), precision]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=250, check=True
    )
    assert int(done.stdout) < 0.3 * size
