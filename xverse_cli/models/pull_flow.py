"""The steps of `xverse pull`, which `xverse chat` takes too where the model is missing."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from threading import Timer

from xverse_cli.host import Host
from xverse_cli.messages import text
from xverse_cli.models import licence, pull
from xverse_cli.models.download.huggingface import is_offline
from xverse_cli.models.download.remote import Source, UnreachableError
from xverse_cli.models.find import DEMO, HUB_ID, FoundModel
from xverse_cli.models.hub_cache import find_snapshot
from xverse_cli.models.machine_fit import MachineFit, machine_fit_apart, packed_precision
from xverse_cli.models.pull import Pull, check_index, sole_puller
from xverse_cli.models.pull_and_pack import (
    convert_as_it_comes,
    delete_source_of,
    packed_already,
)
from xverse_cli.models.pull_plan import Conversion, PullPlan, free_bytes, plan_conversion
from xverse_cli.models.pull_report import chosen_line, plan_lines, resumed_line
from xverse_cli.models.selection import is_weight_file
from xverse_cli.models.sources import Route, chosen_sources
from xverse_cli.models.stores import find_store, store_path
from xverse_cli.models.watching import HostWatcher
from xverse_runtime.durable import NO_SPACE, NOT_WRITABLE
from xverse_runtime.errors import ModelNotFoundError, ResourceError, UsageError

MAIN = "main"
SLOW_S = 2.0


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
    must_reach: bool = False  # what is on this machine does not do
    told: bool = False  # the plan has been shown already
    damaged: tuple[str, ...] = ()  # files of the store that is there, to be made again
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


def pull_model(wish: PullWish, host: Host) -> Pulled:
    """Fetch a model into the cache, and convert it where that is wanted.

    Raises:
        UsageError: ``pull.demo``, ``pull.no_hub_id`` or ``pull.licence_unasked``.
        ModelNotFoundError: the model is nowhere, or nobody can be reached.
        ResourceError: ``pull.disk_full``.
        IntegrityError: what came is not what it should be.
    """
    repo, revision = wish.repo, wish.revision
    if (
        wish.precision
        and not wish.dry_run
        and not wish.damaged
        and (store := _store(wish)) is not None
    ):
        host.streams.say(text("pull.store_there", path=store))
        if wish.delete_source:
            delete_source_of(store, wish.repo)
        return Pulled(store, None)
    if is_offline():
        return _without_network(wish, ModelNotFoundError("pull.offline", model=repo), host)
    watcher = HostWatcher(host)
    sources = chosen_sources(wish.source, host.environ, pull.PATIENCE)
    try:
        with _said_if_slow(wish, host) as asking:
            route = Route(sources, repo, revision, watcher.note, asking)
    except UnreachableError as error:
        if wish.must_reach:
            raise
        return _without_network(wish, error, host)
    job = Pull(route, wish.jobs, pull.PATIENCE, watcher)
    job.go_on_where_it_began()
    rates = _rates_wanted(wish, job, host)
    if rates and host.streams.stderr_is_terminal:
        host.streams.say(text("pull.looking"))
    plan = job.plan(wish.context, partial(_conversion, wish, host), rates=rates)
    packed = packed_already(job, plan)
    left = tuple(file for file in plan.missing if file.name not in packed)
    plan = replace(plan, missing=left)
    if wish.dry_run:
        return Pulled(None, plan)
    if plan.missing or plan.conversion:
        _tell(wish, job, plan, host)
        plan.check_disk()
        _agree(wish, plan, host)
    return Pulled(_carry_out(wish, job, plan, watcher, host), plan)


@contextmanager
def _said_if_slow(wish: PullWish, host: Host) -> Iterator[Callable[[Source], None]]:
    """Yields what is told of each source that is asked, and says so where its answer is slow to
    come: it may be blocked here."""
    timers: list[Timer] = []

    def asking(source: Source) -> None:
        for timer in timers:
            timer.cancel()
        words = text(f"pull.asking_{source.name}", endpoint=source.endpoint, model=wish.model)
        timers.append(Timer(SLOW_S, host.streams.say, [words]))
        timers[-1].daemon = True
        timers[-1].start()

    try:
        yield asking
    finally:
        for timer in timers:
            timer.cancel()


def _rates_wanted(wish: PullWish, job: Pull, host: Host) -> bool:
    """Whether someone decides by the plan: then a second of measuring is worth it."""
    if wish.precision == "auto":
        return True
    if wish.dry_run:
        return not wish.told
    return host.streams.stderr_is_terminal and not wish.told and not job.was_begun


def _tell(wish: PullWish, job: Pull, plan: PullPlan, host: Host) -> None:
    """The plan; of a download that was begun, and whose plan was shown then, how far it is."""
    if wish.told:
        return
    conversion = plan.conversion
    goes_on = job.was_begun and plan.accepted is not None and plan.here_bytes > 0
    if conversion is not None and conversion.delete_source:
        goes_on = goes_on and conversion.partial.is_dir()
    if goes_on:
        host.streams.say(resumed_line(plan))
    for line in plan_lines(plan):
        host.streams.say(line, level=1 if goes_on else 0)


@contextmanager
def _alone(
    wish: PullWish, job: Pull, plan: PullPlan, watcher: HostWatcher, host: Host
) -> Iterator[None]:
    """Hold the model's lock; while another process has it, show how far that one is."""
    gone: set[str] = set()
    with ExitStack() as shown:

        def waiting() -> None:
            host.streams.warn(text("pull.waiting", model=wish.model))
            shown.enter_context(watcher.displaying())

        def look() -> None:
            watcher.show(job.statuses_of_another(plan, gone))

        with sole_puller(job.folder, waiting, look):
            shown.close()
            yield


def _carry_out(wish: PullWish, job: Pull, plan: PullPlan, watcher: HostWatcher, host: Host) -> Path:
    try:
        with _writing(job.folder.root, plan), _alone(wish, job, plan, watcher, host):
            job.begin()
            small = [file for file in plan.files if not is_weight_file(file.name)]
            with watcher.displaying():
                job.fetch(small)
            check_index(job.folder, job.model.commit, plan.files)
            if plan.conversion and plan.conversion.delete_source:
                return convert_as_it_comes(wish.model, job, plan, watcher, host)
            with watcher.displaying():
                job.fetch(plan.files)
            path = job.finish(plan.files)
    except KeyboardInterrupt:
        host.streams.say(text("pull.resume", command=command_of(wish)))
        raise
    key = "pull.done" if plan.missing else "pull.up_to_date"
    host.streams.say(text(key, model=wish.model, size_bytes=plan.total_bytes))
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
    store = convert.make_store(request, host)
    host.streams.say(text("pull.talk", model=wish.model))
    return store


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
        config = (path / "config.json").read_bytes()
        fit = machine_fit_apart(config, wish.context, rates=wish.precision == "auto")
        conversion = _conversion(wish, host, config, fit)
        assert conversion is not None
        path = _convert(wish, conversion, host)
        if wish.delete_source:
            delete_source_of(path, wish.repo)
    return Pulled(path, None)


def _conversion(
    wish: PullWish, host: Host, config: bytes, fit: MachineFit | None
) -> Conversion | None:
    if wish.precision is None:
        return None
    precision = wish.precision
    if precision == "auto":
        precision, rate = packed_precision(config, fit)
        host.streams.say(chosen_line(precision, rate))
    output = store_path(FoundModel(Path(wish.repo), wish.repo, _branch(wish)), precision)
    conversion = plan_conversion(precision, output, config, delete_source=wish.delete_source)
    return replace(conversion, damaged=wish.damaged)


def _agree(wish: PullWish, plan: PullPlan, host: Host) -> None:
    """Have the licence of the weights accepted, once for each model.

    Raises:
        UsageError: ``pull.licence_unasked`` where nobody can be asked, ``pull.licence_declined``.
    """
    if plan.accepted is not None or not wish.ask_licence:
        return
    if not wish.accept_licence:
        if not host.streams.stdin_is_terminal:
            raise UsageError("pull.licence_unasked", model=wish.model, command=command_of(wish))
        if not host.streams.confirm(text("pull.licence_question")):
            raise UsageError("pull.licence_declined", model=wish.model)
    licence.accept(wish.repo)


def command_of(wish: PullWish) -> str:
    """The command line that goes on."""
    parts = ["xverse pull", wish.model]
    if wish.precision:
        parts += ["--precision", wish.precision]
    if wish.delete_source:
        parts.append("--delete-source")
    if wish.source != "auto":
        parts += ["--source", wish.source]
    return " ".join(parts)
