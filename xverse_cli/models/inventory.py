"""Which models lie on this machine: published ones in the Hub's cache, and stores."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import chain
from pathlib import Path
from typing import Any

from xverse_cli.models.hub_cache import DEFAULT_REVISION, INDEXES, MANIFEST, missing_files
from xverse_cli.models.hub_folder import HubFolder
from xverse_cli.models.last_use import last_use
from xverse_cli.models.selection import WEIGHTS
from xverse_cli.models.sizes import cut_files
from xverse_cli.models.stores import PRECISIONS, stores_dir
from xverse_cli.settings import cache_dir

PARTIAL = ".partial"  # what the runtime adds to a store's name while it is being made
COMPLETE, INCOMPLETE, NO_WEIGHTS = "complete", "incomplete", "no_weights"
DAMAGED = "damaged"
PUBLISHED, STORE, SYNTHETIC = "published", "store", "synthetic"


@dataclass(frozen=True)
class StoredModel:
    """One model on disk.

    Args:
        name: Hub id, or the folder's name.
        kind: ``published``, ``store`` or ``synthetic``; stores can come from the Hub, too.
        precision: of a store.
        path: its directory.
        files: where its bytes really lie, and how many; another model may share some.
        branches: the branches and tags it is, or the revision that a store was named by.
        commit: where it is known.
        state: ``complete``, ``incomplete``, ``damaged`` where files are cut short, or
            ``no_weights`` where only the rest was kept.
        total_bytes: what it will have when it is complete, as far as that is known.
        cut: names of files that are cut short.
    """

    name: str
    kind: str
    precision: str | None
    path: Path
    files: dict[Path, int] = field(hash=False)
    branches: tuple[str, ...]
    commit: str | None
    state: str
    total_bytes: int
    cut: tuple[str, ...] = ()

    @property
    def hub_id(self) -> str:
        """As commands take it: with a revision, unless it is the usual one."""
        named = [name for name in self.branches if name != DEFAULT_REVISION]
        usual = DEFAULT_REVISION in self.branches
        revision = "" if usual else named[0] if named else self.commit or ""
        return f"{self.name}@{revision}" if revision else self.name

    @property
    def bytes(self) -> int:
        return sum(self.files.values())

    @property
    def last_use(self) -> float | None:
        return last_use(self.path)


def stored_models() -> list[StoredModel]:
    """Everything that xverse can run or is fetching; other tools' models are passed over."""
    return [*published_models(), *stores(), *synthetic_stores()]


def together_bytes(models: Iterable[StoredModel]) -> int:
    """What they take on disk; files that several of them share count once."""
    files: dict[Path, int] = {}
    for model in models:
        files |= model.files
    return sum(files.values())


def published_models() -> Iterator[StoredModel]:
    """One for each revision in the Hub's cache."""
    for folder in HubFolder.all():
        begun = {pinned.commit for pinned, _ in folder.unfinished()}
        for commit in sorted({*folder.commits(), *begun}):
            snapshot = folder.snapshot(commit)
            if is_ours(snapshot) or (commit in begun and not (snapshot / "config.json").exists()):
                yield _published(folder, commit)


def is_ours(model: Path) -> bool:
    """Whether a directory holds a model of the family, as far as its small files say."""
    from xverse_runtime.config import ARCHITECTURES

    if (model / MANIFEST).is_file():
        return True
    config = read_object(model / "config.json")
    names = config.get("architectures")
    named = isinstance(names, list) and any(name in ARCHITECTURES for name in names)
    return named or config.get("model_type") == "xverse"


def stores() -> Iterator[StoredModel]:
    """Converted models in their usual place, and those that are half made."""
    for path in _store_folders(stores_dir()):
        stem, _, precision = path.name.removesuffix(PARTIAL).rpartition("-")
        if precision in PRECISIONS:
            name, _, revision = stem.partition("@")
            branches = (revision.replace("%2F", "/") or "main",)
            yield _store(path, STORE, name.replace("--", "/", 1), precision, branches)


def synthetic_stores() -> Iterator[StoredModel]:
    """Stores of random weights, for measuring."""
    for path in _store_folders(synthetic_dir()):
        name, _, precision = path.name.removesuffix(PARTIAL).rpartition("-")
        yield _store(path, SYNTHETIC, name or path.name, precision, ())


def synthetic_dir() -> Path:
    return cache_dir() / "synthetic"


def real_files(folder: Path) -> dict[Path, int]:
    """The files that the names in a folder lead to, and their sizes in bytes."""
    found = {}
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError, RuntimeError):
                real = (Path(place) / name).resolve()
                found[real] = real.stat().st_size
    return found


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object; an empty one for a file that is not there or is none."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _store_folders(place: Path) -> list[Path]:
    if not place.is_dir():
        return []
    return [
        path
        for path in sorted(place.iterdir())
        if path.is_dir() and (path.name.endswith(PARTIAL) or (path / MANIFEST).is_file())
    ]


def _store(
    path: Path, kind: str, name: str, precision: str, branches: tuple[str, ...]
) -> StoredModel:
    files = real_files(path)
    half = path.name.endswith(PARTIAL) or bool(missing_files(path))
    commit = store_commit(path)
    cut = () if half else tuple(cut_files(path))
    state = INCOMPLETE if half else DAMAGED if cut else COMPLETE
    size = sum(files.values())
    return StoredModel(name, kind, precision, path, files, branches, commit, state, size, cut)


def store_commit(store: Path) -> str | None:
    """The commit that a store was made of, where that is known."""
    source = read_object(store / MANIFEST).get("source")
    commit = source.get("revision") if isinstance(source, dict) else None
    return commit if isinstance(commit, str) and commit else None


def _published(folder: HubFolder, commit: str) -> StoredModel:
    snapshot = folder.snapshot(commit)
    files = real_files(snapshot)
    here = sum(files.values())
    halves = [(pinned, done) for pinned, done in folder.unfinished() if pinned.commit == commit]
    for pinned, done in halves:
        files[folder.work / (pinned.digest + ".part")] = done
    missing = missing_files(snapshot)
    pulled = read_object(snapshot / MANIFEST)
    branches = tuple(name for name, one in folder.branches().items() if one == commit)
    state = _state(snapshot, bool(halves), bool(missing))
    cut = tuple(cut_files(snapshot)) if state == COMPLETE else ()
    return StoredModel(
        folder.repo,
        STORE if pulled else PUBLISHED,
        store_precision(pulled) if pulled else None,
        snapshot,
        files,
        branches,
        commit,
        DAMAGED if cut else state,
        max(here + sum(pinned.size for pinned, _ in halves), _indexed_bytes(snapshot)),
        cut,
    )


def store_precision(manifest: dict[str, Any]) -> str | None:
    """What the experts of a store are packed to, in which most of its bytes are."""
    parts = manifest.get("precision")
    found = parts.get("experts") if isinstance(parts, dict) else None
    return found if isinstance(found, str) else None


def _state(snapshot: Path, half: bool, missing: bool) -> str:
    if not half and not missing:
        return COMPLETE
    names = [path.name for path in snapshot.glob("*")]
    patterns = [MANIFEST, *chain(*WEIGHTS)]
    told = any(fnmatchcase(name, pattern) for name in names for pattern in patterns)
    # a conversion that deleted its source leaves the small files
    return INCOMPLETE if half or told or "config.json" not in names else NO_WEIGHTS


def _indexed_bytes(snapshot: Path) -> int:
    """What the weights will have together, if their index is here and tells."""
    for name in INDEXES:
        facts = read_object(snapshot / name).get("metadata")
        size = facts.get("total_size") if isinstance(facts, dict) else None
        if isinstance(size, (int, float)):
            return int(size)
    return 0
