"""`xverse convert`: make a store of packed weights from a published checkpoint."""

# No postponed annotations: Typer would compile every one of them anew on each start.

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from xverse_cli import options
from xverse_cli.exit_codes import DONE
from xverse_cli.host import Host, Job
from xverse_cli.messages import text
from xverse_cli.values import choice, integer, model_name
from xverse_runtime.errors import UsageError

if TYPE_CHECKING:
    from xverse_cli.models.find import FoundModel
    from xverse_runtime.store.manifest import StorePrecision

_FORMATS = ("bf16", "int8", "int4")

ModelArgument = Annotated[
    str,
    typer.Argument(
        parser=options.read_with(model_name), metavar="MODEL", help=text("help.model_argument")
    ),
]
TargetPrecision = Annotated[
    str,
    typer.Option(
        "--precision",
        parser=options.read_with(choice("auto", *_FORMATS)),
        metavar="PRECISION",
        help=text("help.convert_precision"),
    ),
]
Part = options.read_with(choice(*_FORMATS))
Attention = Annotated[
    str | None,
    typer.Option(
        "--attention",
        parser=Part,
        metavar="FORMAT",
        help=text("help.convert_attention"),
        show_default=False,
    ),
]
Head = Annotated[
    str | None,
    typer.Option(
        "--head",
        parser=Part,
        metavar="FORMAT",
        help=text("help.convert_head"),
        show_default=False,
    ),
]
Output = Annotated[
    str | None,
    typer.Option(
        "--output", "-o", metavar="DIR", help=text("help.convert_output"), show_default=False
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(
        "--threads",
        parser=options.read_with(integer(1, 256)),
        metavar="N",
        help=text("help.convert_threads"),
        show_default=False,
    ),
]
DeleteSource = Annotated[bool, typer.Option("--delete-source", help=text("help.delete_source"))]
Yes = Annotated[bool, typer.Option("--yes", "-y", help=text("help.yes"))]


@dataclass(frozen=True)
class Request:
    """What the command line asks `convert` for."""

    model: str
    precision: str
    attention: str | None
    head: str | None
    output: str | None
    threads: int | None
    delete_source: bool
    yes: bool


def register(app: typer.Typer) -> None:
    app.command("convert", help=text("help.convert"))(convert)


def convert(
    model: ModelArgument,
    precision: TargetPrecision = "auto",
    output: Output = None,
    attention: Attention = None,
    head: Head = None,
    threads: Threads = None,
    delete_source: DeleteSource = False,
    yes: Yes = False,
    verbose: options.Verbose = 0,
    quiet: options.Quiet = False,
) -> Job:
    request = Request(model, precision, attention, head, output, threads, delete_source, yes)
    return Job(partial(run, request), options.verbosity(verbose, quiet))


def run(request: Request, host: Host) -> int:
    """Convert, and delete the source's weights where that is wanted."""
    host.streams.write_data(f"{make_store(request, host)}\n")
    return DONE


def make_store(request: Request, host: Host) -> Path:
    """The store, made or found; see `run`."""
    import torch

    from xverse_cli.models.find import DEMO, find_model
    from xverse_cli.models.stores import store_path
    from xverse_cli.render.progress import byte_bar
    from xverse_runtime.store.convert import ConversionPlan, convert_checkpoint
    from xverse_runtime.store.verify import verify_store

    source = find_model(request.model)
    if request.delete_source and source.name == DEMO:
        raise UsageError("convert.demo_stays")
    if request.delete_source and not request.yes and not host.streams.stdin_is_terminal:
        raise UsageError("convert.delete_unasked")
    if not request.output:
        store_path(source, request.precision)  # refuses before anything is measured
    preset, precision = _precision(request, source, host)
    wish = request.output
    output = Path(wish).expanduser() if wish else store_path(source, preset)
    plans: list[ConversionPlan] = []
    torch.set_num_threads(1)  # experts are the unit of parallel work
    with byte_bar(text("convert.progress", model=request.model), host.watched_stderr) as progress:
        manifest = convert_checkpoint(
            source.path,
            output.absolute(),
            precision,
            source_name=source.name,
            threads=request.threads,
            on_plan=plans.append,
            progress=progress,
        )
        already_there = any(plan.already_there for plan in plans)
        if already_there and request.delete_source:
            verify_store(output.absolute(), progress)  # it was made long ago
    size = sum(record.bytes for record in manifest.files.values())
    key = "convert.already_there" if already_there else "convert.done"
    host.streams.say(text(key, path=output, size_bytes=size))
    if request.delete_source:
        _delete(source.path, request.yes, host)
    return output


def _precision(request: Request, source: "FoundModel", host: Host) -> tuple[str, "StorePrecision"]:
    """The preset by name, and it with the parts that the user wants otherwise."""
    from dataclasses import replace

    from xverse_cli.models.machine_fit import machine_fit, packed_precision
    from xverse_cli.models.pull_report import chosen_line
    from xverse_runtime.config import ModelConfig
    from xverse_runtime.model_dir import ModelDirectory
    from xverse_runtime.store.precision import PRESETS

    name = request.precision
    if name == "auto":
        directory = ModelDirectory.open(source.path)
        ModelConfig.from_dir(directory)  # whose errors name the file
        config = (directory.path / "config.json").read_bytes()
        name, rate = packed_precision(config, machine_fit(config, None, rates=True))
        host.streams.say(chosen_line(name, rate))
    preset = PRESETS[name]
    parts = {"attention": request.attention, "head": request.head}
    return name, replace(preset, **{key: value for key, value in parts.items() if value})


def _delete(path: Path, yes: bool, host: Host) -> None:
    from xverse_cli.models.stores import delete_weights, weight_files

    files = weight_files(path)
    size = sum(file.stat().st_size for file in files)
    question = text("convert.delete_question", path=path, size_bytes=size)
    if yes or host.streams.confirm(question):
        delete_weights(path)
        host.streams.say(text("convert.deleted", size_bytes=size))
    else:
        host.streams.say(text("convert.kept"))
