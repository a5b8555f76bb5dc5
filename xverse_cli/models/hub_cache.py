"""Looks a model up in the Hugging Face cache, where other tools may have downloaded it."""

from __future__ import annotations

import json
import re
from pathlib import Path

from xverse_cli.models.hub_folder import HubFolder
from xverse_runtime.errors import ModelNotFoundError

DEFAULT_REVISION = "main"
INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
MANIFEST = "xverse.json"
_SINGLES = ("model.safetensors", "pytorch_model.bin")
_COMMIT = re.compile(r"[0-9a-f]{40}")


def find_snapshot(repo: str, revision: str) -> Path:
    """The complete snapshot of ``repo`` at a branch, tag or commit.

    Raises:
        ModelNotFoundError: ``model.not_cached``, ``model.no_such_revision`` or
            ``model.incomplete_download``.
    """
    folder = HubFolder.of(repo).root
    if not (folder / "snapshots").is_dir():
        raise ModelNotFoundError("model.not_cached", model=repo, path=_from_home(folder.parent))
    snapshot = folder / "snapshots" / _commit(folder, revision)
    if not snapshot.is_dir():
        present = _revisions(folder)
        raise ModelNotFoundError(
            "model.no_such_revision", model=repo, revision=revision, present=present
        )
    missing = missing_files(snapshot)
    if missing:
        raise ModelNotFoundError(
            "model.incomplete_download", model=repo, names=missing, path=snapshot
        )
    return snapshot


def known_commit(repo: str, revision: str) -> str | None:
    """The commit that a branch, tag or commit stands for, as far as this machine knows."""
    folder = HubFolder.of(repo).root
    commit = _commit(folder, revision)
    named = (folder / "refs" / revision).is_file() or (folder / "snapshots" / commit).is_dir()
    return commit if named or _COMMIT.fullmatch(commit) else None


def _from_home(path: Path) -> str:
    """``path`` as people write it, from ``~`` on where it is at home."""
    try:
        return str("~" / path.relative_to(Path.home()))
    except (ValueError, RuntimeError):
        return str(path)


def missing_files(snapshot: Path) -> list[str]:
    """Names of the files without which nothing can be loaded; empty when all are there."""
    missing = [] if (snapshot / "config.json").is_file() else ["config.json"]
    if (snapshot / MANIFEST).is_file():
        return missing + [name for name in _listed(snapshot) if not (snapshot / name).is_file()]
    for name in INDEXES:
        if (snapshot / name).is_file():
            return missing + [
                shard for shard in shards_of(snapshot / name) if not (snapshot / shard).is_file()
            ]
    if not any((snapshot / name).is_file() for name in _SINGLES):
        missing.append(_SINGLES[0])
    return missing


def _listed(snapshot: Path) -> list[str]:
    """The files of a store that was published as it is."""
    try:
        names = json.loads((snapshot / MANIFEST).read_bytes())["files"]
        return sorted(name for name in names if Path(name).name == name)
    except (OSError, ValueError, KeyError, TypeError):
        return []


def shards_of(index: Path) -> list[str]:
    """The plain file names an index lists; what is wrong with it, the runtime will say."""
    try:
        weight_map = json.loads(index.read_bytes())["weight_map"]
        names = {name for name in weight_map.values() if isinstance(name, str)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []
    return sorted(name for name in names if Path(name).name == name)


def _commit(folder: Path, revision: str) -> str:
    try:
        commit = (folder / "refs" / revision).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        commit = revision
    return commit if Path(commit).name == commit else "?"  # a name, never a way out of the folder


def _revisions(folder: Path) -> list[str]:
    refs = folder / "refs"
    named = [path.relative_to(refs).as_posix() for path in refs.rglob("*") if path.is_file()]
    commits = [path.name for path in (folder / "snapshots").iterdir() if path.is_dir()]
    return sorted(named) or sorted(commits)
