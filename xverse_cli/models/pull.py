"""Fetching one model into the Hugging Face cache: plan, lock, transfer, links."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from filelock import FileLock, Timeout

from xverse_cli.models import licence
from xverse_cli.models.download.partial_file import PartialFile
from xverse_cli.models.download.parts import Pinned
from xverse_cli.models.download.patience import Patience
from xverse_cli.models.download.remote import RemoteFile, RemoteModel
from xverse_cli.models.download.transfer import Note, Status, Transfer
from xverse_cli.models.hub_folder import HubFolder
from xverse_cli.models.machine_fit import MachineFit, machine_fit_apart
from xverse_cli.models.pull_plan import Conversion, PullPlan
from xverse_cli.models.selection import is_store, select_files
from xverse_cli.models.sources import Route
from xverse_runtime.durable import write_durably
from xverse_runtime.errors import IntegrityError, ModelNotFoundError

PATIENCE = Patience()
AT_ONCE = 64  # files, each with two descriptors; some systems give a process 256
MOST_SMALL = 2**26  # bytes of a file that is read into memory
PINS = "pull.json"
LOOK_S = 0.2  # how often a lock that another one holds is tried


class Watcher(Protocol):
    """Who is told how a download goes."""

    def show(self, statuses: list[Status]) -> None:
        """How far each file is."""

    def note(self, note: Note) -> None:
        """What happened."""


@dataclass(frozen=True)
class Pull:
    """One model on its way into the cache.

    Args:
        route: where it comes from.
        jobs: connections at a time.
        patience: with the line.
        watcher: who is told.
    """

    route: Route
    jobs: int
    patience: Patience
    watcher: Watcher

    @property
    def model(self) -> RemoteModel:
        return self.route.model

    @property
    def folder(self) -> HubFolder:
        return HubFolder.of(self.model.repo)

    def go_on_where_it_began(self) -> None:
        """Stay at the commit of an interrupted download though the branch has moved on."""
        pinned = _pins(self.folder).get(self.model.revision)
        if pinned is None or pinned == self.model.commit or not self.folder.unfinished():
            return
        if any(half.source != self.route.source.name for half, _ in self.folder.unfinished()):
            return  # another source calls its snapshots differently; the bytes are compared
        moved = {"revision": self.model.revision, "old": pinned[:8], "new": self.model.commit[:8]}
        stays = self.route.at_commit(pinned)
        self.watcher.note(Note("pull.stays" if stays else "pull.moved_on", dict(moved)))

    @property
    def was_begun(self) -> bool:
        """Whether this revision was being fetched before, and is not complete."""
        return self.model.revision in _pins(self.folder)

    def statuses_of_another(self, plan: PullPlan, gone: set[str]) -> list[Status]:
        """How far another process is that fetches the same.

        Args:
            plan: made when this one began.
            gone: names of files that were there once, and may have been packed and deleted since.
        """
        folder, missing = self.folder, {file.name for file in plan.missing}
        half = {pinned.digest: done for pinned, done in folder.unfinished()}
        found = []
        for file in plan.files:
            if file.name not in missing or folder.has(file.digest, file.size):
                gone.add(file.name)
            done = file.size if file.name in gone else min(half.get(file.digest, 0), file.size)
            found.append(Status(file, done, done))
        return found

    def plan(
        self,
        context: int | None,
        conversion: Callable[[bytes, MachineFit | None], Conversion | None],
        *,
        rates: bool = False,
    ) -> PullPlan:
        """What is to be done; reads the configuration, and writes nothing.

        Args:
            context: tokens for the fit; ``None`` is the model's.
            conversion: what is to be made of the model, given its ``config.json`` and the fit.
            rates: whether the fit tells speeds, for which the machine is measured.
        """
        files = select_files(self.model)
        folder = self.folder
        missing = tuple(file for file in files if not folder.has(file.digest, file.size))
        half = {pinned.digest: done for pinned, done in folder.unfinished()}
        config = self.read_small(_named(files, "config.json"))
        fit = None if is_store(files) else machine_fit_apart(config, context, rates=rates)
        return PullPlan(
            self.model,
            self.route.source.name,
            self.route.source.endpoint,
            folder,
            files,
            missing,
            sum(min(half.get(file.digest, 0), file.size) for file in missing),
            conversion(config, fit),
            fit,
            licence.accepted(self.model.repo),
        )

    def read_small(self, file: RemoteFile) -> bytes:
        """The content of a small file, from the cache or from its source."""
        blob = self.folder.blobs / file.digest
        if self.folder.has(file.digest, file.size):
            return blob.read_bytes()
        return _read_remote(self.route, file, self.patience)

    def fetch(self, files: Sequence[RemoteFile]) -> None:
        """Fetch what is not there yet, check it, and give it its names. The lock must be held."""
        folder, commit = self.folder, self.model.commit
        for file in files:
            if folder.has(file.digest, file.size):
                folder.link(commit, file.name, file.digest)
        missing = [file for file in files if not folder.has(file.digest, file.size)]
        if not missing:
            return
        folder.blobs.mkdir(parents=True, exist_ok=True)
        names: dict[str, list[str]] = {}
        for file in missing:
            names.setdefault(file.digest, []).append(file.name)

        def done(partial: PartialFile) -> None:
            for name in names[partial.file.digest]:
                folder.link(commit, name, partial.file.digest)

        distinct = _distinct(missing)
        for start in range(0, len(distinct), AT_ONCE):
            self._transfer(distinct[start : start + AT_ONCE], done)

    def _transfer(self, files: Sequence[RemoteFile], done: Callable[[PartialFile], None]) -> None:
        transfer = Transfer(
            self.route.locate, self.jobs, self.patience, self.watcher.show, self.watcher.note
        )
        on_the_way = [self._partial(file) for file in files]
        try:
            transfer.run(on_the_way, done)
        finally:
            for partial in on_the_way:
                partial.close()

    def _partial(self, file: RemoteFile) -> PartialFile:
        pinned = Pinned(
            file.digest,
            file.size,
            file.name,
            self.model.repo,
            self.model.commit,
            self.route.source.name,
        )
        return PartialFile(file, self.folder.blobs / file.digest, self.folder.work, pinned)

    def begin(self) -> None:
        """Remember the commit, so that an interruption changes nothing."""
        folder, model = self.folder, self.model
        folder.work.mkdir(parents=True, exist_ok=True)
        pins = {**_pins(folder), model.revision: model.commit}
        write_durably(folder.work / PINS, json.dumps(pins, indent=2).encode())
        if model.revision not in folder.branches():
            folder.set_branch(model.revision, model.commit)

    def finish(self, files: Sequence[RemoteFile]) -> Path:
        """Let the branch name what is complete now, and drop halves of files that were replaced."""
        folder, model = self.folder, self.model
        folder.set_branch(model.revision, model.commit)
        digests = {file.name: file.digest for file in files}
        for pinned, _ in folder.unfinished():
            replaced = digests.get(pinned.name, pinned.digest) != pinned.digest
            # a kill between the file's getting its name and the end of its table leaves that
            if replaced or folder.has(pinned.digest, pinned.size):
                folder.drop_unfinished(pinned.digest)
        pins = {key: one for key, one in _pins(folder).items() if key != model.revision}
        write_durably(folder.work / PINS, json.dumps(pins, indent=2).encode())
        return folder.snapshot(model.commit)


@contextmanager
def sole_puller(
    folder: HubFolder, waiting: Callable[[], None], look: Callable[[], None] = lambda: None
) -> Iterator[None]:
    """Hold the lock of a model's folder.

    Args:
        waiting: called once where another one holds it.
        look: called again and again from then on, until it is free.
    """
    folder.work.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder.lock)
    waits = False
    while True:
        try:
            lock.acquire(timeout=0)
            break
        except Timeout:
            if not waits:
                waiting()
            waits = True
            look()
            time.sleep(LOOK_S)
    try:
        yield
    finally:
        lock.release()


def check_index(folder: HubFolder, commit: str, files: Sequence[RemoteFile]) -> None:
    """Raises IntegrityError: ``pull.shards_missing``: the index names files that are not there."""
    from xverse_cli.models.hub_cache import INDEXES, shards_of

    names = {file.name for file in files}
    for index in INDEXES:
        if index in names:
            missing = [
                one for one in shards_of(folder.snapshot(commit) / index) if one not in names
            ]
            if missing:
                raise IntegrityError("pull.shards_missing", names=missing, index=index)


def _read_remote(route: Route, file: RemoteFile, patience: Patience) -> bytes:
    """A small file through the same checks as the large ones, in a place of its own."""
    from tempfile import TemporaryDirectory

    if file.size > MOST_SMALL:
        raise IntegrityError("pull.too_large", name=file.name, size_bytes=file.size)
    with TemporaryDirectory(prefix="xverse-") as place:
        target = Path(place) / "whole"
        pinned = Pinned(file.digest, file.size, file.name, route.model.repo, route.model.commit, "")
        partial = PartialFile(file, target, Path(place), pinned)
        transfer = Transfer(route.locate, 1, patience, lambda statuses: None, lambda note: None)
        try:
            transfer.run([partial], lambda done: None)
        finally:
            partial.close()
        return target.read_bytes()


def _named(files: Sequence[RemoteFile], name: str) -> RemoteFile:
    found = next((file for file in files if file.name == name), None)
    if found is None:
        raise ModelNotFoundError("pull.no_model", model=name)
    return found


def _distinct(files: Sequence[RemoteFile]) -> list[RemoteFile]:
    """One of each content: two names of the same bytes are fetched once."""
    return list({file.digest: file for file in reversed(files)}.values())[::-1]


def _pins(folder: HubFolder) -> dict[str, str]:
    """Revision to commit of downloads that were begun."""
    with suppress(OSError, ValueError):
        found = json.loads((folder.work / PINS).read_bytes())
        if isinstance(found, dict):
            return {str(key): str(one) for key, one in found.items()}
    return {}
