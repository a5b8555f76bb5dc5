"""Packing weight files as they come, so that the disk never holds all of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from xverse_cli.host import Host
from xverse_cli.messages import text
from xverse_cli.models.download.remote import RemoteFile
from xverse_cli.models.hub_cache import INDEXES
from xverse_cli.models.hub_folder import HubFolder
from xverse_cli.models.pull import Pull
from xverse_cli.models.pull_plan import PullPlan
from xverse_cli.models.selection import is_weight_file
from xverse_cli.models.stores import commit_of, delete_published
from xverse_cli.models.watching import HostWatcher
from xverse_cli.render.download import Rest
from xverse_cli.render.progress import byte_bar
from xverse_runtime.errors import XverseError
from xverse_runtime.types import LoadProgress, ProgressCallback

if TYPE_CHECKING:
    from xverse_runtime.store.streaming import StreamedConversion


def convert_as_it_comes(
    name: str, job: Pull, plan: PullPlan, watcher: HostWatcher, host: Host
) -> Path:
    """Fetch one weight file after the other, pack it, and delete it."""
    from xverse_runtime.store.precision import PRESETS
    from xverse_runtime.store.streaming import StreamedConversion

    assert plan.conversion is not None
    weights = _weights(plan)
    snapshot = job.folder.snapshot(job.model.commit)
    bar = _PackingBar(text("convert.progress", model=name), host)
    with StreamedConversion(
        snapshot,
        plan.conversion.output,
        PRESETS[plan.conversion.precision],
        digests={name: file.digest for name, file in weights.items()},
        source_name=job.model.repo,
        damaged=plan.conversion.damaged,
        progress=bar.tell,
    ) as conversion:
        if conversion.already_made is None:
            _pack_each(job, weights, conversion, watcher, bar)
            with bar.showing():
                conversion.finish()
    delete_published(snapshot, [file.name for file in plan.files if holds_weights(file.name)])
    job.finish(plan.files)
    size = plan.conversion.store_bytes
    host.streams.say(text("convert.done", path=plan.conversion.output, size_bytes=size))
    host.streams.say(text("pull.talk", model=name))
    return plan.conversion.output


def _pack_each(
    job: Pull,
    weights: Mapping[str, RemoteFile],
    conversion: StreamedConversion,
    watcher: HostWatcher,
    bar: _PackingBar,
) -> None:
    """At most two weight files lie on the disk at a time where each layer is in two at most."""
    snapshot = job.folder.snapshot(job.model.commit)
    # They are deleted once they are packed, so that it is too late to check them then.
    present = {name for name, file in weights.items() if _is_right(job.folder, file)}
    job.fetch([weights[name] for name in sorted(present)])  # gives them their names
    conversion.check_room({name: file.size for name, file in weights.items()})

    def offer() -> None:
        with bar.showing():
            free = conversion.offer(present)
        delete_published(snapshot, free)
        present.difference_update(free)

    offer()
    needed = conversion.needed()
    for name in needed:
        if name not in present:
            coming = [one for one in needed[needed.index(name) :] if one not in present]
            with watcher.displaying(_rest(weights, coming)):
                job.fetch([weights[name]])
            present.add(name)
        offer()


def _rest(weights: Mapping[str, RemoteFile], coming: Sequence[str]) -> Rest:
    """All weight files but the first of those that are still to come."""
    total = sum(file.size for file in weights.values())
    left = sum(weights[name].size for name in coming)
    done, files = len(weights) - len(coming), len(weights) - 1
    return Rest(total - left, total - weights[coming[0]].size, done, files)


def packed_already(job: Pull, plan: PullPlan) -> set[str]:
    """Names of the weight files that an interrupted conversion does not need any more."""
    conversion = plan.conversion
    if conversion is None or not conversion.delete_source:
        return set()
    if not conversion.damaged and not conversion.partial.is_dir():
        return set()
    from tempfile import TemporaryDirectory

    from xverse_runtime.store.precision import PRESETS
    from xverse_runtime.store.streaming import StreamedConversion

    weights = _weights(plan)
    small = [one for one in plan.files if one.name == "config.json" or one.name in INDEXES]
    try:
        with TemporaryDirectory(prefix="xverse-") as place:
            for file in small:  # they may have been deleted with the weights
                Path(place, file.name).write_bytes(job.read_small(file))
            outstanding = StreamedConversion(
                Path(place),
                conversion.output,
                PRESETS[conversion.precision],
                digests={name: file.digest for name, file in weights.items()},
                damaged=conversion.damaged,
            ).outstanding()
    except XverseError:
        return set()  # what is wrong is told when it is fetched
    return weights.keys() - {*outstanding}


def _weights(plan: PullPlan) -> dict[str, RemoteFile]:
    return {file.name: file for file in plan.files if is_weight_file(file.name)}


def _is_right(folder: HubFolder, file: RemoteFile) -> bool:
    """Whether a blob is there with the bytes of its name; a wrong one is removed.

    Other tools that put blobs there do not all check them.
    """
    blob = folder.blobs / file.digest
    if not folder.has(file.digest, file.size):
        return False
    digest = file.new_digest()
    with blob.open("rb") as data:
        while piece := data.read(2**20):
            digest.update(piece)
    if digest.hexdigest() != file.digest:
        blob.unlink()
        return False
    return True


def holds_weights(name: str) -> bool:
    return is_weight_file(name) or name.endswith(".index.json")


class _PackingBar:
    """A bar for the conversion that makes room for the download's."""

    def __init__(self, description: str, host: Host) -> None:
        self._description = description
        self._host = host
        self.tell: ProgressCallback = self._pass_on
        self._show: ProgressCallback = lambda progress: None

    def _pass_on(self, progress: LoadProgress) -> None:
        self._show(progress)

    @contextmanager
    def showing(self) -> Iterator[None]:
        with byte_bar(self._description, self._host.watched_stderr) as self._show:
            yield
        self._show = lambda progress: None


def delete_source_of(store: Path, repo: str) -> None:
    """The published weights of a finished store, where they are still there and not wanted."""
    folder = HubFolder.of(repo)
    commit = commit_of(store / "xverse.json")
    snapshot = folder.snapshot(commit or "?")
    if snapshot.is_dir():
        from xverse_runtime.store.verify import verify_store

        verify_store(store)
        delete_published(
            snapshot, [one.name for one in snapshot.iterdir() if holds_weights(one.name)]
        )
