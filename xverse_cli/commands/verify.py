"""`xverse verify`: read every byte of a model and compare it with what it should be."""

# No postponed annotations: Typer would compile every one of them anew on each start.

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from shlex import quote
from typing import TYPE_CHECKING, Annotated

import typer

from xverse_cli import options
from xverse_cli.commands.convert import ModelArgument
from xverse_cli.exit_codes import DONE
from xverse_cli.host import Host, Job
from xverse_cli.messages import text
from xverse_runtime.errors import IntegrityError, UsageError

if TYPE_CHECKING:
    from xverse_cli.models.check import Check
    from xverse_runtime.types import ProgressCallback

Published = Annotated[bool, typer.Option("--published", help=text("help.verify_published"))]
Repair = Annotated[bool, typer.Option("--repair", help=text("help.repair"))]


@dataclass(frozen=True)
class Request:
    """What the command line asks `verify` for."""

    model: str
    published: bool
    repair: bool
    as_json: bool


def register(app: typer.Typer) -> None:
    app.command("verify", help=text("help.verify"))(verify)


def verify(
    model: ModelArgument,
    published: Published = False,
    repair: Repair = False,
    as_json: options.Json = False,
    verbose: options.Verbose = 0,
    quiet: options.Quiet = False,
) -> Job:
    request = Request(model, published, repair, as_json)
    return Job(partial(run, request), options.verbosity(verbose, quiet))


def run(request: Request, host: Host) -> int:
    """Verify a model, and where that is wanted fetch what is broken again."""
    check = _check(request, host)
    if request.repair and check.broken:
        check = _repaired(check, request, host)
    if request.as_json:
        from xverse_cli.json_output import to_json

        host.streams.write_data(to_json(check.to_json(request.model)) + "\n")
    if check.broken and check.is_published:
        raise IntegrityError("verify.broken", model=request.model, names=check.broken)
    if check.broken:
        raise IntegrityError("store.hash", name=", ".join(check.broken), path=str(check.path))
    if check.unknown:
        host.streams.warn(text("verify.unknown", names=check.unknown))
    files, size = len(check.files), check.bytes
    key = "verify.done_published" if check.is_published else "verify.done"
    host.streams.say(text(key, path=check.path, files=files, size_bytes=size))
    return DONE


def _check(request: Request, host: Host) -> "Check":
    from xverse_cli.models.check import check_snapshot, check_store
    from xverse_cli.models.find import find_present
    from xverse_cli.models.stores import example_output, has_own_place
    from xverse_runtime.model_dir import ModelDirectory
    from xverse_runtime.store.manifest import is_store

    found = find_present(request.model, None if request.published else "auto")
    directory = ModelDirectory.open(found.path)
    if directory.revision:
        check = _read(request, host, partial(check_snapshot, found.path.resolve()))
        if check.broken or len(check.unknown) < len(check.files):
            return check
    if not is_store(directory):
        if has_own_place(found):
            raise UsageError("verify.no_store", model=request.model)
        model, example = quote(request.model), quote(example_output(found))  # for the shell
        raise UsageError("verify.no_store_here", model=model, example=example)
    return _read(request, host, partial(check_store, found.path))


def _read(request: Request, host: Host, check: "Callable[[ProgressCallback], Check]") -> "Check":
    from xverse_cli.render.progress import byte_bar

    with byte_bar(text("verify.progress", model=request.model), host.watched_stderr) as progress:
        return check(progress)


def _repaired(check: "Check", request: Request, host: Host) -> "Check":
    """The check again, of what was fetched anew; files that no model needs are gone by then."""
    from dataclasses import replace

    from xverse_cli.models.check import check_snapshot, check_store
    from xverse_cli.models.repair import refetch, refetch_store, remake

    if not check.is_published:
        done = remake(check.path, host) or refetch_store(check.path, check.broken, host)
        return _read(request, host, partial(check_store, check.path)) if done else check
    broken = check.broken
    host.streams.say(text("verify.repairing", names=broken))
    refetch(check.path, broken, host)
    again = _read(request, host, partial(check_snapshot, check.path, only=broken))
    kept = tuple(file for file in check.files if file.ok is not False)
    return replace(check, files=(*kept, *again.files))
