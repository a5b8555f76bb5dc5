"""Kernels are compiled while a model loads, all of them, and once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("sentencepiece")  # the demo's tokenizer; a plain checkout can lack it

SCRIPT = """
import json, os, sys
import bench.gpu
from triton import knobs
from xverse_runtime.config import EngineConfig
from xverse_runtime.demo import demo_directory
from xverse_runtime.engine import Engine
from xverse_runtime.types import SamplingParams

told, asked = [], []
config = EngineConfig(device="cuda", **json.loads(sys.argv[1]))
engine = Engine.load(demo_directory(), config, progress=told.append)
knobs.compilation.listener = lambda *, src, **_: asked.append(src.name)
limit = engine.context_length - 8
greedy = SamplingParams(temperature=0, max_new_tokens=4)
random = SamplingParams(temperature=0.8, top_k=20, max_new_tokens=4, seed=1)
host = SamplingParams(temperature=0, max_new_tokens=2, logprobs=1)
text = engine.encode_prompt("What is a mixture of experts? ") * 500
for tokens in (1, 2, 5, 9, 17, 40, 250, 600, 1100):
    for params in (greedy, random, host):
        list(engine.generate(text[: min(tokens, limit)], params))
list(engine.generate_batch([text[:n] for n in (3, 20, 90)], greedy))
last = told[-1]
print(json.dumps([last.done_kernels, last.total_kernels, asked]))
"""


def run(cache: Path, settings: dict[str, Any]) -> list[Any]:
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "TRITON_CACHE_DIR": str(cache)}
    environment.pop("TRITON_INTERPRET", None)
    command = [sys.executable, "-c", SCRIPT, json.dumps(settings)]
    result = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    found: list[Any] = json.loads(result.stdout)
    return found


@pytest.mark.parametrize(
    "settings", [{}, {"kv": "int8"}, {"precision": "fp16"}, {"cuda_graph": False}], ids=str
)
def test_the_second_start_compiles_nothing(tmp_path: Path, settings: dict[str, Any]) -> None:
    done, total, asked = run(tmp_path, settings)
    assert done == total > 10
    assert asked == [], "not listed by kernel_versions, or not loaded after it was compiled"
    _, total, asked = run(tmp_path, settings)
    assert total == 0
    assert asked == []
