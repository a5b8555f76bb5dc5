"""`xverse rm`: delete a model, after saying what goes and how much room that makes."""

# No postponed annotations: Typer would compile every one of them anew on each start.

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from xverse_cli import options
from xverse_cli.commands.convert import Yes
from xverse_cli.exit_codes import DONE
from xverse_cli.host import Host, Job
from xverse_cli.messages import text
from xverse_cli.values import choice, model_name
from xverse_runtime.errors import UsageError

if TYPE_CHECKING:
    from xverse_cli.models.remove import Removal, RemovalWish

Model = Annotated[
    str,
    typer.Argument(
        parser=options.read_with(model_name), metavar="MODEL", help=text("help.rm_model")
    ),
]
Precision = Annotated[
    str | None,
    typer.Option(
        "--precision",
        parser=options.read_with(choice("bf16", "int8", "int4")),
        metavar="PRECISION",
        help=text("help.rm_precision"),
        show_default=False,
    ),
]
Published = Annotated[bool, typer.Option("--published", help=text("help.rm_published"))]
DryRun = Annotated[bool, typer.Option("--dry-run", help=text("help.rm_dry_run"))]


@dataclass(frozen=True)
class Request:
    """What the command line asks `rm` for."""

    wish: "RemovalWish"
    yes: bool
    dry_run: bool
    as_json: bool


def register(app: typer.Typer) -> None:
    app.command("rm", help=text("help.rm"))(rm)


def rm(
    model: Model,
    precision: Precision = None,
    published: Published = False,
    yes: Yes = False,
    dry_run: DryRun = False,
    as_json: options.Json = False,
    verbose: options.Verbose = 0,
    quiet: options.Quiet = False,
) -> Job:
    from xverse_cli.models.remove import RemovalWish

    request = Request(RemovalWish(model, precision, published), yes, dry_run, as_json)
    return Job(partial(run, request), options.verbosity(verbose, quiet))


def run(request: Request, host: Host) -> int:
    """Say what would be deleted, ask, and delete."""
    from xverse_cli.models.remove import plan_removal

    removal = plan_removal(request.wish)
    lines = _lines(removal)
    freed = removal.freed_bytes  # known only while it is there
    removed = not request.dry_run and _agreed(request, lines, freed, host)
    if removed:
        removal.carry_out()
        host.streams.say(text("rm.done", freed_bytes=freed))
    elif not request.dry_run:
        host.streams.say(text("rm.kept"))
    if request.as_json:
        from xverse_cli.json_output import to_json

        found = _object(request.wish.model, removal, freed, removed)
        host.streams.write_data(to_json(found) + "\n")
    elif request.dry_run:
        host.streams.write_data("".join(f"{line}\n" for line in lines))
    return DONE


def _agreed(request: Request, lines: list[str], freed: int, host: Host) -> bool:
    """Raises UsageError: ``rm.unasked``: nobody can be asked."""
    if request.yes:
        for line in lines:
            host.streams.say(line)
        return True
    if not host.streams.stdin_is_terminal:
        raise UsageError("rm.unasked")
    for line in lines:
        host.streams.error(line)  # a question without what it is about would be none, even with -q
    return host.streams.confirm(text("rm.question", freed_bytes=freed))


def _lines(removal: "Removal") -> list[str]:
    from xverse_cli.commands.listing import kind_text

    lines = []
    for model in removal.models:
        frees = removal.frees(model)
        kind = kind_text(model)
        lines.append(text("rm.line", model=model.name, kind=kind, freed_bytes=frees))
        lines.append(text("rm.path", path=model.path))
        if model.bytes > frees:
            lines.append(text("rm.shared", shared_bytes=model.bytes - frees))
    return lines


def _object(model: str, removal: "Removal", freed: int, removed: bool) -> dict[str, Any]:
    items = [
        {"model": one.name, "kind": one.kind, "precision": one.precision, "path": str(one.path)}
        for one in removal.models
    ]
    return {"model": model, "items": items, "freed_bytes": freed, "removed": removed}
