"""`xverse pull`: fetch a model, or go on fetching it."""

# No postponed annotations: Typer would compile every one of them anew on each start.

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from xverse_cli import options
from xverse_cli.exit_codes import DONE
from xverse_cli.host import Host, Job
from xverse_cli.messages import text
from xverse_cli.values import choice, integer
from xverse_runtime.errors import UsageError

if TYPE_CHECKING:
    from xverse_cli.models.pull_flow import Pulled, PullWish

Model = Annotated[
    str | None,
    typer.Argument(metavar="[MODEL]", help=text("help.pull_model"), show_default=False),
]
Source = Annotated[
    str,
    typer.Option(
        "--source",
        parser=options.read_with(choice("auto", "huggingface", "modelscope")),
        metavar="SOURCE",
        help=text("help.pull_source"),
    ),
]
Jobs = Annotated[
    int,
    typer.Option(
        "--jobs",
        "-j",
        parser=options.read_with(integer(1, 32)),
        metavar="N",
        help=text("help.pull_jobs"),
    ),
]
Precision = Annotated[
    str | None,
    typer.Option(
        "--precision",
        parser=options.read_with(choice("auto", "bf16", "int8", "int4")),
        metavar="PRECISION",
        help=text("help.pull_precision"),
        show_default=False,
    ),
]
DeleteSource = Annotated[
    bool, typer.Option("--delete-source", help=text("help.pull_delete_source"))
]
AcceptLicense = Annotated[bool, typer.Option("--accept-license", help=text("help.accept_license"))]
DryRun = Annotated[bool, typer.Option("--dry-run", help=text("help.dry_run"))]
Json = Annotated[bool, typer.Option("--json", help=text("help.pull_json"))]


@dataclass(frozen=True)
class Request:
    """What the command line asks `pull` for."""

    model: str | None
    precision: str | None
    delete_source: bool
    source: str
    jobs: int
    context: int | None
    accept_license: bool
    dry_run: bool
    as_json: bool


def register(app: typer.Typer) -> None:
    app.command("pull", help=text("help.pull"))(pull)


def pull(
    model: Model = None,
    precision: Precision = None,
    delete_source: DeleteSource = False,
    source: Source = "auto",
    jobs: Jobs = 8,
    context: options.Context = None,
    accept_license: AcceptLicense = False,
    dry_run: DryRun = False,
    as_json: Json = False,
    verbose: options.Verbose = 0,
    quiet: options.Quiet = False,
) -> Job:
    if delete_source and precision is None:
        raise UsageError("pull.delete_without_precision")
    if model is not None:
        from xverse_cli.models.names import hub_id, is_on_modelscope

        if source == "auto" and is_on_modelscope(model):
            source = "modelscope"
        model = hub_id(model)
    request = Request(
        model, precision, delete_source, source, jobs, context, accept_license, dry_run, as_json
    )
    return Job(partial(run, request), options.verbosity(verbose, quiet))


def run(request: Request, host: Host) -> int:
    """Fetch what is missing; the path of the model goes to stdout."""
    from xverse_cli.models.pull_flow import PullWish, pull_model
    from xverse_cli.models.pull_report import plan_lines

    settings = host.settings({"model": request.model, "context": request.context})
    wish = PullWish(
        settings.model,
        source=request.source,
        jobs=request.jobs,
        context=settings.context,
        precision=request.precision,
        delete_source=request.delete_source,
        accept_licence=request.accept_license,
        dry_run=request.dry_run,
    )
    pulled = pull_model(wish, host)
    if request.as_json:
        from xverse_cli.json_output import to_json

        host.streams.write_data(to_json(_object(wish, pulled)) + "\n")
    elif pulled.path is not None:
        host.streams.write_data(f"{pulled.path}\n")
    elif pulled.plan is not None:
        host.streams.write_data("".join(f"{line}\n" for line in plan_lines(pulled.plan)))
    return DONE


def _object(wish: "PullWish", pulled: "Pulled") -> dict[str, Any]:
    named = {"model": wish.repo, "revision": wish.revision}
    facts = pulled.plan.to_json() if pulled.plan else named
    return {**facts, "pulled": None if pulled.path is None else str(pulled.path)}
