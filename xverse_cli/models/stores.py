"""Stores on this machine, and the published weights they were made from."""

from __future__ import annotations

from pathlib import Path

from xverse_cli.models.find import FoundModel
from xverse_cli.settings import cache_dir, data_dir

_WEIGHTS = ("*.safetensors", "*.bin", "*.safetensors.index.json", "*.bin.index.json")


def stores_dir() -> Path:
    """Where stores are kept unless the user says otherwise."""
    return data_dir() / "stores"


def store_path(source: FoundModel, precision: str) -> Path:
    """Where the store of ``source`` at ``precision`` belongs."""
    name = source.name or source.path.resolve().name
    return stores_dir() / f"{name.replace('/', '--')}-{precision}"


def stores_of(name: str) -> dict[str, Path]:
    """The stores made of a Hub id: name of the precision to directory."""
    prefix = name.replace("/", "--") + "-"
    found = {
        manifest.parent.name.removeprefix(prefix): manifest.parent
        for manifest in stores_dir().glob("*/xverse.json")
        if manifest.parent.name.startswith(prefix)
    }
    return {key: path for key, path in found.items() if key in ("bf16", "int8", "int4")}


def find_store(name: str, precision: str) -> Path | None:
    """The store of a Hub id to run at ``precision``, if one was made.

    ``auto`` takes the only one, or of several the highest precision at reading speed.
    """
    stores = stores_of(name)
    if precision != "auto" or len(stores) < 2:
        return next(iter(stores.values()), None) if precision == "auto" else stores.get(precision)
    from xverse_runtime.config import ModelConfig
    from xverse_runtime.model_dir import ModelDirectory
    from xverse_runtime.store.precision import choose_precision, measure_read_bandwidth

    config = ModelConfig.from_dir(ModelDirectory.open(next(iter(stores.values()))))
    best, _ = choose_precision(config, measure_read_bandwidth())
    order = ("bf16", "int8", "int4")
    fast_enough = [one for one in order[order.index(best) :] if one in stores]
    return stores[fast_enough[0]] if fast_enough else next(iter(stores.values()))


def synthetic_path(shape: str, precision: str) -> Path:
    """Where a store of random weights is kept; it can be made again at any time."""
    return cache_dir() / "synthetic" / f"{shape}-{precision}"


def weight_files(model: Path) -> list[Path]:
    """The files of published weights in a model's directory."""
    return sorted({file for pattern in _WEIGHTS for file in model.glob(pattern)})


def delete_weights(model: Path) -> None:
    """Delete published weights; in the Hub's cache also the blobs that they link to."""
    for file in weight_files(model):
        blob = file.resolve()
        file.unlink()
        if blob != file and blob.parent.name == "blobs":
            blob.unlink(missing_ok=True)
