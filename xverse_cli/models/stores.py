"""Stores on this machine, and the published weights they were made from."""

from __future__ import annotations

from pathlib import Path

from xverse_cli.models.find import FoundModel
from xverse_cli.settings import cache_dir, data_dir
from xverse_runtime.errors import UsageError


def stores_dir() -> Path:
    """Where stores are kept unless the user says otherwise."""
    return data_dir() / "stores"


def store_path(source: FoundModel, precision: str) -> Path:
    """Where the store of a Hub id at ``precision`` belongs, and is found again by that id.

    Raises:
        UsageError: ``convert.output_needed``: directories have no name that is theirs alone.
    """
    if source.name is None or "/" not in source.name:
        raise UsageError("convert.output_needed")
    return stores_dir() / f"{source.name.replace('/', '--')}-{precision}"


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
    """The weights that a conversion reads, and their index; nothing else of the directory."""
    from xverse_runtime import checkpoint
    from xverse_runtime.model_dir import ModelDirectory

    return [model / name for name in checkpoint.weight_files(ModelDirectory.open(model))]


def delete_weights(model: Path) -> None:
    """Delete published weights; in the Hub's cache also the blobs that no other snapshot needs."""
    for file in weight_files(model):
        blob = file.resolve()
        file.unlink()
        if blob.parent.name == "blobs" and blob.parent.parent == model.parent.parent.resolve():
            others = model.parent.glob(f"*/{file.name}")
            if not any(other.resolve() == blob for other in others):
                blob.unlink(missing_ok=True)
