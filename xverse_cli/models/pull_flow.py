"""The steps of `xverse pull`, which `xverse chat` takes too where the model is missing."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from xverse_cli.host import Host
from xverse_cli.messages import text
from xverse_cli.models import licence, pull
from xverse_cli.models.download.huggingface import is_offline
from xverse_cli.models.download.remote import RemoteFile, UnreachableError
from xverse_cli.models.download.transfer import Note, Status
from xverse_cli.models.find import DEMO, HUB_ID, FoundModel
from xverse_cli.models.hub_cache import find_snapshot
from xverse_cli.models.hub_folder import HubFolder
from xverse_cli.models.pull import Pull, check_index, sole_puller
from xverse_cli.models.pull_plan import Conversion, PullPlan, free_bytes, plan_conversion
from xverse_cli.models.pull_report import plan_lines
from xverse_cli.models.selection import is_weight_file
from xverse_cli.models.sources import Route, chosen_sources
from xverse_cli.models.stores import commit_of, delete_published, find_store, store_path
from xverse_cli.render.download import DownloadDisplay, FileStatus
from xverse_cli.render.progress import byte_bar
from xverse_runtime.durable import NO_SPACE, NOT_WRITABLE
from xverse_runtime.errors import ModelNotFoundError, ResourceError, UsageError
from xverse_runtime.types import LoadProgress, ProgressCallback

if TYPE_CHECKING:
    from xverse_runtime.store.streaming import StreamedConversion

MAIN = "main"


@dataclass(frozen=True)
class PullWish:
    """What the user asks for. ``model``: ``owner/name`` or ``owner/name@revision``."""

    model: str
    source: str = "auto"
    jobs: int = 8
    context: int | None = None
    precision: str | None = None
    delete_source: bool = False
    accept_licence: bool = False
    ask_licence: bool = True
    dry_run: bool = False

    @property
    def repo(self) -> str:
        return self._parsed["repo"]

    @property
    def revision(self) -> str:
        return self._parsed["revision"] or MAIN

    @property
    def _parsed(self) -> re.Match[str]:
        match = HUB_ID.fullmatch(self.model)
        if self.model == DEMO:
            raise UsageError("pull.demo")
        if match is None or ".." in self.model:
            raise UsageError("pull.no_hub_id", model=self.model)
        return match


@dataclass(frozen=True)
class Pulled:
    """How it ended: ``path`` of the model, ``None`` after a dry run; ``plan`` if one was made."""

    path: Path | None
    plan: PullPlan | None


class _Watcher:
    """Passes on what happens to the display of the moment."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._display: DownloadDisplay | None = None

    @contextmanager
    def displaying(self) -> Iterator[None]:
        with DownloadDisplay(self._host.streams) as self._display:
            yield
        self._display = None

    def show(self, statuses: list[Status]) -> None:
        if self._display is not None:
            self._display.show(cast("list[FileStatus]", statuses))

    def note(self, note: Note) -> None:
        line = text(note.key, **note.facts)
        if self._display is not None:
            self._display.say(line)
        else:
            self._host.streams.warn(line)


def pull_model(wish: PullWish, host: Host) -> Pulled:
    """Fetch a model into the cache, and convert it where that is wanted.

    Raises:
        UsageError: ``pull.demo``, ``pull.no_hub_id`` or ``pull.licence_unasked``.
        ModelNotFoundError: the model is nowhere, or nobody can be reached.
        ResourceError: ``pull.disk_full``.
        IntegrityError: what came is not what it should be.
    """
    repo, revision = wish.repo, wish.revision
    if wish.precision and not wish.dry_run and (store := _store(wish)) is not None:
        host.streams.say(text("pull.store_there", path=store))
        _delete_source_of(store, wish)
        return Pulled(store, None)
    if is_offline():
        return _without_network(wish, ModelNotFoundError("pull.offline", model=repo), host)
    watcher = _Watcher(host)
    sources = chosen_sources(wish.source, host.environ, pull.PATIENCE)
    try:
        route = Route(sources, repo, revision, watcher.note)
    except UnreachableError as error:
        return _without_network(wish, error, host)
    job = Pull(route, wish.jobs, pull.PATIENCE, watcher)
    job.go_on_where_it_began()
    plan = job.plan(wish.context, lambda config: _conversion(wish, config, host))
    if wish.dry_run:
        return Pulled(None, plan)
    if plan.missing or plan.conversion:
        for line in plan_lines(plan):
            host.streams.say(line)
        plan.check_disk()
        _agree(wish, plan, host)
    return Pulled(_carry_out(wish, job, plan, watcher, host), plan)


def _carry_out(wish: PullWish, job: Pull, plan: PullPlan, watcher: _Watcher, host: Host) -> Path:
    def waiting() -> None:
        host.streams.warn(text("pull.waiting", model=wish.model))

    try:
        with _writing(job.folder.root, plan), sole_puller(job.folder, waiting):
            job.begin()
            small = [file for file in plan.files if not is_weight_file(file.name)]
            with watcher.displaying():
                job.fetch(small)
            check_index(job.folder, job.model.commit, plan.files)
            if plan.conversion and plan.conversion.delete_source:
                return _convert_as_it_comes(wish, job, plan, watcher, host)
            with watcher.displaying():
                job.fetch(plan.files)
            path = job.finish(plan.files)
    except KeyboardInterrupt:
        host.streams.say(text("pull.resume", command=_command(wish)))
        raise
    key = "pull.done" if plan.missing else "pull.up_to_date"
    host.streams.say(text(key, model=wish.model, size_bytes=plan.total_bytes, path=path))
    return _convert(wish, plan.conversion, host) if plan.conversion else path


@contextmanager
def _writing(folder: Path, plan: PullPlan) -> Iterator[None]:
    """Turns what the file system refuses into errors that say what to do.

    Raises:
        ResourceError: ``pull.disk_full``.
        UsageError: ``pull.not_writable``.
    """
    try:
        yield
    except OSError as error:
        if error.errno in NO_SPACE:
            raise ResourceError(
                "pull.disk_full",
                path=str(folder),
                needed_bytes=plan.fetch_bytes,
                free_bytes=free_bytes(folder),
            ) from None
        if error.errno in NOT_WRITABLE:
            detail = error.strerror or "permission denied"
            path = str(error.filename or folder)
            raise UsageError("pull.not_writable", path=path, detail=detail) from None
        raise


def _convert(wish: PullWish, conversion: Conversion, host: Host) -> Path:
    from xverse_cli.commands import convert

    request = convert.Request(
        wish.model, conversion.precision, None, None, None, None, delete_source=False, yes=True
    )
    return convert.make_store(request, host)


def _convert_as_it_comes(
    wish: PullWish, job: Pull, plan: PullPlan, watcher: _Watcher, host: Host
) -> Path:
    """Fetch one weight file after the other, pack it, and delete it."""
    from xverse_runtime.store.precision import PRESETS
    from xverse_runtime.store.streaming import StreamedConversion

    assert plan.conversion is not None
    weights = {file.name: file for file in plan.files if is_weight_file(file.name)}
    snapshot = job.folder.snapshot(job.model.commit)
    bar = _PackingBar(text("convert.progress", model=wish.model), host)
    with StreamedConversion(
        snapshot,
        plan.conversion.output,
        PRESETS[plan.conversion.precision],
        digests={name: file.digest for name, file in weights.items()},
        source_name=wish.repo,
        progress=bar.tell,
    ) as conversion:
        if conversion.already_made is None:
            _pack_each(job, weights, conversion, watcher, bar)
            with bar.showing():
                conversion.finish()
    delete_published(snapshot, [file.name for file in plan.files if _holds_weights(file.name)])
    job.finish(plan.files)
    size = plan.conversion.store_bytes
    host.streams.say(text("convert.done", path=plan.conversion.output, size_bytes=size))
    return plan.conversion.output


def _pack_each(
    job: Pull,
    weights: Mapping[str, RemoteFile],
    conversion: StreamedConversion,
    watcher: _Watcher,
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
    for name in conversion.needed():
        if name not in present:
            with watcher.displaying():
                job.fetch([weights[name]])
            present.add(name)
        offer()


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


def _holds_weights(name: str) -> bool:
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


def _store(wish: PullWish) -> Path | None:
    """The store that was made of this revision before, as far as this machine knows."""
    return find_store(wish.repo, _branch(wish), wish.precision or "auto")


def _branch(wish: PullWish) -> str | None:
    return None if wish.revision == MAIN else wish.revision


def _without_network(wish: PullWish, why: ModelNotFoundError, host: Host) -> Pulled:
    """The model on this machine; ``why`` is raised where it is not there, or not whole."""
    try:
        path = find_snapshot(wish.repo, wish.revision)
    except ModelNotFoundError:
        raise why from None
    detail = str(why.params.get("detail") or "HF_HUB_OFFLINE")
    host.streams.warn(text("pull.kept", detail=detail, path=path))
    if wish.precision and not wish.dry_run:
        conversion = _conversion(wish, (path / "config.json").read_bytes(), host)
        assert conversion is not None
        path = _convert(wish, conversion, host)
        _delete_source_of(path, wish)
    return Pulled(path, None)


def _delete_source_of(store: Path, wish: PullWish) -> None:
    """The published weights of a finished store, where they are still there and not wanted."""
    if not wish.delete_source:
        return
    folder = HubFolder.of(wish.repo)
    commit = commit_of(store / "xverse.json")
    snapshot = folder.snapshot(commit or "?")
    if snapshot.is_dir():
        from xverse_runtime.store.verify import verify_store

        verify_store(store)
        delete_published(
            snapshot, [one.name for one in snapshot.iterdir() if _holds_weights(one.name)]
        )


def _conversion(wish: PullWish, config: bytes, host: Host) -> Conversion | None:
    if wish.precision is None:
        return None
    precision = wish.precision
    if precision == "auto":
        precision = _best_precision(config, host)
    output = store_path(FoundModel(Path(wish.repo), wish.repo, _branch(wish)), precision)
    return plan_conversion(precision, output, config, delete_source=wish.delete_source)


def _best_precision(config: bytes, host: Host) -> str:
    from xverse_runtime.config import ModelConfig
    from xverse_runtime.store.precision import choose_precision, measure_read_bandwidth

    parsed = ModelConfig.from_dict(json.loads(config))
    precision, rate = choose_precision(parsed, measure_read_bandwidth())
    host.streams.say(text("convert.chosen", precision=precision, rate=f"{rate:.0f}"))
    return precision


def _agree(wish: PullWish, plan: PullPlan, host: Host) -> None:
    """Have the licence of the weights accepted, once for each model.

    Raises:
        UsageError: ``pull.licence_unasked`` where nobody can be asked, ``pull.licence_declined``.
    """
    if plan.accepted is not None or not wish.ask_licence:
        return
    if not wish.accept_licence:
        if not host.streams.stdin_is_terminal:
            raise UsageError("pull.licence_unasked", model=wish.model, command=_command(wish))
        if not host.streams.confirm(text("pull.licence_question")):
            raise UsageError("pull.licence_declined", model=wish.model)
    licence.accept(wish.repo)


def _command(wish: PullWish) -> str:
    """The command line that goes on."""
    parts = ["xverse pull", wish.model]
    if wish.precision:
        parts += ["--precision", wish.precision]
    if wish.delete_source:
        parts.append("--delete-source")
    if wish.source != "auto":
        parts += ["--source", wish.source]
    return " ".join(parts)
