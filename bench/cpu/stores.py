"""Stores of random weights in the true shape."""

from __future__ import annotations

from pathlib import Path

import xverse_runtime
from xverse_runtime.store.manifest import StorePrecision
from xverse_runtime.store.synthetic import A4_2B, write_synthetic_store

DEMO = Path(xverse_runtime.__file__).parent / "demo"


def int4_store(cache: Path, layers: int) -> Path:
    """Everything in int4, which is what Q4_0 is to llama.cpp; made unless ``cache`` has it."""
    path = cache / f"xverse-int4-{layers}"
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        shape = {**A4_2B, "num_hidden_layers": layers}
        write_synthetic_store(shape, path, StorePrecision("int4", "int4", "int4"), DEMO)
    return path
