"""Stores on this machine, and the published weights they were made from."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path

from xverse_cli.models.find import FoundModel
from xverse_cli.models.hub_cache import DEFAULT_REVISION, known_commit
from xverse_cli.settings import cache_dir, data_dir
from xverse_runtime.errors import UsageError

PRECISIONS = ("bf16", "int8", "int4")  # the highest first
_JOURNAL = "progress.json"  # what the runtime writes into a store that it is making


def stores_dir() -> Path:
    """Where stores are kept unless the user says otherwise."""
    return data_dir() / "stores"


def store_path(source: FoundModel, precision: str) -> Path:
    """Where the store of a Hub id at ``precision`` belongs, and is found again by that id.

    Raises:
        UsageError: ``convert.output_needed``: directories have no name that is theirs alone.
    """
    if not has_own_place(source):
        raise UsageError("convert.output_needed", example=example_output(source, precision))
    return stores_dir() / f"{_stem(source.name or '', source.revision)}-{precision}"


def has_own_place(source: FoundModel) -> bool:
    """Whether stores of this model are kept where its name finds them: a Hub id's are."""
    return source.name is not None and "/" in source.name


def example_output(source: FoundModel, precision: str = "auto") -> str:
    """A directory that a store of ``source`` might be written to."""
    return f"./{source.path.resolve().name}-{'store' if precision == 'auto' else precision}"


def _stem(name: str, revision: str | None) -> str:
    """``org--name`` or ``org--name@revision``; a Hub id holds neither ``@`` nor ``%``."""
    at = f"@{revision.replace('/', '%2F')}" if revision else ""
    return name.replace("/", "--") + at


def stores_of(name: str, revision: str | None = None) -> dict[str, Path]:
    """The stores made of a Hub id at a revision: name of the precision to directory.

    Where both the store and the Hub's cache know the commit, that decides: a branch may have moved
    on since the store was made. Otherwise the revision's name does.
    """
    commit = known_commit(name, revision or DEFAULT_REVISION)
    found: dict[str, Path] = {}
    for manifest in sorted(stores_dir().glob("*/xverse.json")):
        stem, _, precision = manifest.parent.name.rpartition("-")
        if precision not in PRECISIONS or stem.partition("@")[0] != _stem(name, None):
            continue
        made_of = commit_of(manifest)
        named = stem == _stem(name, revision)
        if made_of == commit if commit and made_of else named:
            # the one that was made under this name goes before another's of the same commit
            found[precision] = manifest.parent if named else found.get(precision, manifest.parent)
    return found


def begun_precision(name: str, revision: str | None) -> str | None:
    """To which precision a Hub id was last being converted, if that was interrupted."""
    begun = {
        precision: stores_dir() / f"{_stem(name, _named(revision))}-{precision}.partial"
        for precision in PRECISIONS
    }
    times = {
        precision: (path / _JOURNAL).stat().st_mtime
        for precision, path in begun.items()
        if (path / _JOURNAL).is_file()
    }
    return max(times, key=lambda precision: times[precision], default=None)


def _named(revision: str | None) -> str | None:
    return None if revision == DEFAULT_REVISION else revision


def commit_of(manifest: Path) -> str | None:
    """The commit that a store was made of, as its manifest tells."""
    try:
        commit = json.loads(manifest.read_bytes())["source"]["revision"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return commit if isinstance(commit, str) else None


def find_store(name: str, revision: str | None, precision: str) -> Path | None:
    """The store of a Hub id at a revision to run at ``precision``, if one was made.

    ``auto`` takes the only one, or of several the one that `xverse doctor` recommends, or the
    next lower one.
    """
    stores = stores_of(name, revision)
    if precision != "auto" or len(stores) < 2:
        return next(iter(stores.values()), None) if precision == "auto" else stores.get(precision)
    from xverse_cli.models.machine_fit import machine_fit, packed_precision
    from xverse_runtime.config import ModelConfig
    from xverse_runtime.model_dir import ModelDirectory

    directory = ModelDirectory.open(next(iter(stores.values())))
    ModelConfig.from_dir(directory)  # whose errors name the file
    config = (directory.path / "config.json").read_bytes()
    best, _ = packed_precision(config, machine_fit(config, None, rates=True))
    fast_enough = [one for one in PRECISIONS[PRECISIONS.index(best) :] if one in stores]
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
    delete_published(model, [file.name for file in weight_files(model)])


def delete_published(model: Path, names: Iterable[str]) -> None:
    """Delete files of a published model, and the blobs in the Hub's cache that only they need."""
    for name in names:
        file = model / name
        if not os.path.lexists(file):
            continue
        blob = _blob_of(file, model.parent.parent / "blobs")
        file.unlink()
        if blob is not None and not _is_used(blob, model.parent):
            blob.unlink(missing_ok=True)


def _blob_of(file: Path, blobs: Path) -> Path | None:
    """The blob that a name of a snapshot leads to, as a link of either kind."""
    real = file.resolve()
    if real.parent == blobs.resolve():
        return real
    if file.is_symlink() or file.stat().st_nlink < 2 or not blobs.is_dir():
        return None
    return next((blob for blob in blobs.iterdir() if os.path.samefile(blob, file)), None)


def _is_used(blob: Path, snapshots: Path) -> bool:
    """Whether a name in any snapshot, at any depth, still leads to a blob."""
    names = (Path(place) / one for place, _, found in os.walk(snapshots) for one in found)
    return any(name.exists() and os.path.samefile(name, blob) for name in names)
