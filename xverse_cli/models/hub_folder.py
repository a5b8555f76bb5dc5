"""One model's folder in the Hugging Face cache: where its files are and how they get there.

``blobs/`` holds contents under their digests, ``snapshots/<commit>/`` names that link to them,
``refs/<branch>`` commits. What is still being fetched lies in ``.xverse/``, which other tools
pass over.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from xverse_cli.models.download.partial_file import DATA_SUFFIX, TABLE_SUFFIX
from xverse_cli.models.download.parts import Pinned, read_progress
from xverse_runtime.durable import write_durably

PREFIX = "models--"


def hub_cache() -> Path:
    """The cache of all models: `HF_HUB_CACHE`, `HF_HOME`, or the usual place."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


@dataclass(frozen=True)
class HubFolder:
    """``root`` is ``models--owner--name`` in the cache; it need not be there yet."""

    root: Path

    @classmethod
    def of(cls, repo: str) -> HubFolder:
        return cls(hub_cache() / (PREFIX + repo.replace("/", "--")))

    @classmethod
    def all(cls) -> Iterator[HubFolder]:
        """Every model's folder in the cache."""
        cache = hub_cache()
        if cache.is_dir():
            for path in sorted(cache.glob(PREFIX + "*")):
                if path.is_dir():
                    yield cls(path)

    @property
    def repo(self) -> str:
        return self.root.name.removeprefix(PREFIX).replace("--", "/", 1)

    @property
    def blobs(self) -> Path:
        return self.root / "blobs"

    @property
    def snapshots(self) -> Path:
        return self.root / "snapshots"

    @property
    def refs(self) -> Path:
        return self.root / "refs"

    @property
    def work(self) -> Path:
        """What is being fetched, and the lock of who fetches."""
        return self.root / ".xverse"

    @property
    def lock(self) -> Path:
        return self.work / "pull.lock"

    def snapshot(self, commit: str) -> Path:
        return self.snapshots / commit

    def commits(self) -> list[str]:
        """Commits of which there are files."""
        if not self.snapshots.is_dir():
            return []
        return sorted(path.name for path in self.snapshots.iterdir() if path.is_dir())

    def branches(self) -> dict[str, str]:
        """Name of each branch or tag that was asked for, and its commit."""
        if not self.refs.is_dir():
            return {}
        found = {}
        for path in sorted(self.refs.rglob("*")):
            if path.is_file():
                with suppress(OSError, UnicodeDecodeError):
                    name = path.relative_to(self.refs).as_posix()
                    found[name] = path.read_text(encoding="utf-8").strip()
        return found

    def set_branch(self, name: str, commit: str) -> None:
        """Remember what a branch or tag stands for; a commit stands for itself."""
        if name == commit:
            return
        path = self.refs / name
        for place in reversed(path.relative_to(self.refs).parents):
            if (self.refs / place).is_file():  # the branch v1 was there before v1/fix
                (self.refs / place).unlink()
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            shutil.rmtree(path)
        write_durably(path, commit.encode())

    def has(self, digest: str, size: int) -> bool:
        """Whether a blob is there, whole; blobs get their names when they are checked."""
        path = self.blobs / digest
        return path.is_file() and path.stat().st_size == size

    def link(self, commit: str, name: str, digest: str) -> None:
        """Let ``name`` of a snapshot be the blob of that digest."""
        pointer = self.snapshot(commit) / name
        blob = self.blobs / digest
        pointer.parent.mkdir(parents=True, exist_ok=True)
        if pointer.exists() and os.path.samefile(pointer, blob):
            return
        temporary = pointer.with_name(pointer.name + ".tmp")
        temporary.unlink(missing_ok=True)
        try:
            temporary.symlink_to(os.path.relpath(blob, pointer.parent))
        except OSError:  # Windows, for users that may not make such links
            try:
                os.link(blob, temporary)
            except OSError:
                shutil.copyfile(blob, temporary)
        temporary.replace(pointer)

    def unfinished(self) -> list[tuple[Pinned, int]]:
        """What is half fetched, and how many bytes of each are there."""
        if not self.work.is_dir():
            return []
        found = (read_progress(path) for path in sorted(self.work.glob("*" + TABLE_SUFFIX)))
        return [one for one in found if one is not None]

    def drop_unfinished(self, digest: str) -> None:
        for suffix in (TABLE_SUFFIX, DATA_SUFFIX):
            (self.work / (digest + suffix)).unlink(missing_ok=True)
