"""Deleting models: what belongs to one and to nothing else, planned first, then done."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from xverse_cli.models import last_use
from xverse_cli.models.find import DEMO, HUB_ID, looks_local
from xverse_cli.models.hub_cache import DEFAULT_REVISION, MANIFEST, known_commit
from xverse_cli.models.hub_folder import HubFolder
from xverse_cli.models.inventory import (
    PARTIAL,
    STORE,
    StoredModel,
    is_ours,
    published_models,
    read_object,
    real_files,
    stores,
    synthetic_stores,
)
from xverse_cli.models.pull import PINS, sole_puller
from xverse_runtime.durable import write_durably
from xverse_runtime.errors import ModelNotFoundError, UsageError, XverseError
from xverse_runtime.store.place import sole_writer

_DIGEST = re.compile(r"([0-9a-f]{40}|[0-9a-f]{64})(\.[\w.]*incomplete)?")


@dataclass(frozen=True)
class RemovalWish:
    """``model``: a Hub id, with a revision or without, or a store's path.

    ``precision`` wants only that store, ``published`` only what was fetched.
    """

    model: str
    precision: str | None = None
    published: bool = False


@dataclass(frozen=True)
class Removal:
    """What is to be deleted. ``published`` is a revision in the Hub's cache.

    ``freed_bytes`` is what that frees; files that another revision needs stay and do not count.
    """

    published: StoredModel | None
    stores: tuple[StoredModel, ...]

    @property
    def models(self) -> tuple[StoredModel, ...]:
        return (*([self.published] if self.published else []), *self.stores)

    def frees(self, model: StoredModel) -> int:
        """Bytes that deleting one of them frees."""
        if model is not self.published:
            return model.bytes
        kept = _blobs_of_others(_folder(model), model.path)
        return sum(size for path, size in model.files.items() if path not in kept)

    @property
    def freed_bytes(self) -> int:
        return sum(self.frees(model) for model in self.models)

    def carry_out(self) -> None:
        """Delete it.

        Raises:
            XverseError: ``rm.busy``: it is being fetched.
            UsageError: ``store.busy``: it is being converted.
        """
        for store in self.stores:
            remove_store(store.path)
            last_use.forget(store.path)
        if self.published is not None:
            _remove_published(self.published)
            last_use.forget(self.published.path)


def plan_removal(wish: RemovalWish) -> Removal:
    """What there is to delete.

    Raises:
        UsageError: ``rm.demo``, ``rm.directory``, ``rm.two_parts`` or ``rm.not_ours``.
        ModelNotFoundError: ``rm.nothing``, ``model.no_such_directory``, ``model.unknown_name``.
    """
    if wish.precision and wish.published:
        raise UsageError("rm.two_parts")
    if wish.model == DEMO:
        raise UsageError("rm.demo")
    path = Path(os.path.abspath(os.path.expanduser(wish.model)))
    if os.path.lexists(path):
        return _by_path(path)
    if looks_local(wish.model):
        raise ModelNotFoundError("model.no_such_directory", path=path)
    match = HUB_ID.fullmatch(wish.model)
    if match is None or ".." in wish.model:
        raise ModelNotFoundError("model.unknown_name", model=wish.model)
    removal = _by_name(match["repo"], match["revision"] or DEFAULT_REVISION, wish)
    if not removal.models:
        raise ModelNotFoundError("rm.nothing", model=wish.model)
    return removal


def _by_path(path: Path) -> Removal:
    for store in (*stores(), *synthetic_stores()):
        if store.path.parent.resolve() / store.path.name == path.parent.resolve() / path.name:
            return Removal(None, (store,))
    raise UsageError("rm.directory", path=path)


def _by_name(repo: str, revision: str, wish: RemovalWish) -> Removal:
    folder = HubFolder.of(repo)
    commit = known_commit(repo, revision)
    published = None
    if not wish.precision and commit is not None:
        found = [one for one in published_models() if one.path == folder.snapshot(commit)]
        if not found and folder.snapshot(commit).is_dir() and not is_ours(folder.snapshot(commit)):
            raise UsageError("rm.not_ours", model=wish.model, path=folder.snapshot(commit))
        published = found[0] if found else None
    made = () if wish.published else tuple(_made_of(repo, revision, commit))
    wanted = tuple(one for one in made if wish.precision in (None, one.precision))
    return Removal(published, wanted)


def _made_of(repo: str, revision: str, commit: str | None) -> Iterator[StoredModel]:
    """As `stores_of` has it: the commits decide where they are known, else the names."""
    for store in stores():
        if store.kind == STORE and store.name == repo:
            same = store.branches == (revision,)
            if store.commit == commit if store.commit and commit else same:
                yield store


def _folder(published: StoredModel) -> HubFolder:
    return HubFolder(published.path.parent.parent)


def _blobs_of_others(folder: HubFolder, snapshot: Path) -> set[Path]:
    others = (folder.snapshot(commit) for commit in folder.commits())
    return {blob for other in others if other != snapshot for blob in real_files(other)}


def remove_store(path: Path) -> None:
    """Its manifest goes last: what an interruption leaves is still listed, and can be removed."""
    if path.name.endswith(PARTIAL):
        output = path.with_name(path.name.removesuffix(PARTIAL))
        with sole_writer(output):
            _remove_files(path)
        if not os.path.lexists(output):
            _unlink(output.with_name(output.name + ".lock"))
        return
    _remove_files(path)


def _remove_files(folder: Path) -> None:
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name == MANIFEST):
        if entry.is_symlink() or not entry.is_dir():
            entry.unlink()
    real = folder.resolve()
    if folder.is_symlink():
        folder.unlink()
    _remove_empty(real)


def _remove_published(model: StoredModel) -> None:
    folder, snapshot = _folder(model), model.path

    def busy() -> None:
        raise XverseError("rm.busy", model=model.name)

    with sole_puller(folder, busy):
        kept = _blobs_of_others(folder, snapshot)
        last = not any(folder.snapshot(one) != snapshot for one in folder.commits())
        # blobs before the names that lead to them: what an interruption leaves is found again
        if snapshot.is_symlink():  # not ours, and what it leads to even less
            snapshot.unlink()
        for name in _names(snapshot):
            blob = Path(os.path.realpath(name))
            if blob.parent == folder.blobs.resolve() and blob not in kept:
                _unlink(blob)
            _unlink(name)
        _remove_tree(snapshot)
        for pinned, _ in folder.unfinished():
            if last or pinned.commit == model.commit:
                folder.drop_unfinished(pinned.digest)
        for branch, commit in folder.branches().items():
            if last or commit == model.commit:
                _unlink(folder.refs / branch)
        _forget_pins(folder, None if last else model.commit)
        if last:
            _remove_rest(folder)
    if last:
        _remove_empty(folder.work, folder.root)


def _remove_rest(folder: HubFolder) -> None:
    """What belongs to no revision any more; what nobody knows stays, and its folder with it."""
    if folder.blobs.is_dir():
        for blob in folder.blobs.iterdir():
            if _DIGEST.fullmatch(blob.name):
                _unlink(blob)
    absent = folder.root / ".no_exist"  # the Hub's notes on files that a revision does not have
    for note in _names(absent):
        _unlink(note)
    for place in (absent, folder.refs, folder.snapshots, folder.blobs):
        _remove_tree(place)
    if {entry.name for entry in folder.work.iterdir()} <= {folder.lock.name}:
        with suppress(OSError):  # Windows keeps what is open, and removes it with the lock
            folder.lock.unlink()


def _forget_pins(folder: HubFolder, commit: str | None) -> None:
    """The begun downloads of a commit, or ``None`` for all, are not gone on with."""
    path = folder.work / PINS
    left = {key: one for key, one in read_object(path).items() if one != commit}
    if commit is None or not left:
        _unlink(path)
    else:
        write_durably(path, json.dumps(left, indent=2).encode())


def _names(folder: Path) -> list[Path]:
    return [Path(place) / name for place, _, names in os.walk(folder) for name in names]


def _remove_tree(folder: Path) -> None:
    """Remove folders as far as they are empty, the innermost first."""
    _remove_empty(*(Path(place) for place, _, _ in os.walk(folder, topdown=False)))


def _remove_empty(*folders: Path) -> None:
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()


def _unlink(path: Path) -> None:
    path.unlink(missing_ok=True)
