"""`xverse bench`: how fast a model runs here, beside what the machine's memory allows."""

# No postponed annotations: Typer would compile every one of them anew on each start.

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from xverse_cli import options
from xverse_cli.exit_codes import DONE
from xverse_cli.host import Host, Job
from xverse_cli.messages import text
from xverse_cli.values import choice, integer
from xverse_runtime.errors import UsageError

if TYPE_CHECKING:
    from xverse_runtime.benchmark import BenchmarkResult
    from xverse_runtime.engine import Engine

Synthetic = Annotated[
    str | None,
    typer.Option(
        "--synthetic",
        parser=options.read_with(choice("a4.2b")),
        metavar="SHAPE",
        help=text("help.bench_synthetic"),
        show_default=False,
    ),
]


def _count(name: str, minimum: int, key: str) -> typer.models.OptionInfo:
    reader = options.read_with(integer(minimum, 100_000))
    option: typer.models.OptionInfo = typer.Option(name, parser=reader, metavar="N", help=text(key))
    return option


@dataclass(frozen=True)
class Request:
    """What the command line asks `bench` for."""

    flags: Mapping[str, object]
    synthetic: str | None
    prompt_tokens: int
    new_tokens: int
    rounds: int


def register(app: typer.Typer) -> None:
    app.command("bench", help=text("help.bench"))(bench)


def bench(
    ctx: typer.Context,
    model: options.Model = None,
    synthetic: Synthetic = None,
    precision: options.Precision = None,
    prompt_tokens: Annotated[int, _count("--prompt-tokens", 1, "help.bench_prompt")] = 128,
    new_tokens: Annotated[int, _count("--new-tokens", 2, "help.bench_new")] = 16,
    rounds: Annotated[int, _count("--rounds", 1, "help.bench_rounds")] = 3,
    device: options.Device = None,
    context: options.Context = None,
    kv: options.Kv = None,
    threads: options.Threads = None,
    backend: options.Backend = None,
    cuda_graph: options.CudaGraph = None,
    verbose: options.Verbose = 0,
    quiet: options.Quiet = False,
) -> Job:
    request = Request(ctx.params, synthetic, prompt_tokens, new_tokens, rounds)
    return Job(partial(run, request), options.verbosity(verbose, quiet))


def run(request: Request, host: Host) -> int:
    """Load or make the model, measure, print a table."""
    from dataclasses import replace

    from xverse_cli.report import report_model
    from xverse_runtime.benchmark import run_benchmark
    from xverse_runtime.engine import Engine

    settings = host.settings(request.flags)
    if request.synthetic and request.flags.get("model") is not None:
        raise UsageError("bench.two_models")
    if request.synthetic:
        path = _synthetic_store(request.synthetic, settings.precision, host)
        settings = replace(settings, model=str(path))
    loaded = host.load_model(settings)
    report_model(loaded, host.streams)
    engine = loaded.engine
    if not isinstance(engine, Engine):
        raise UsageError("bench.not_local")
    result = run_benchmark(
        engine,
        engine.bytes_per_token,
        prompt_tokens=request.prompt_tokens,
        new_tokens=request.new_tokens,
        rounds=request.rounds,
        on_round=lambda number: host.streams.say(
            text("bench.round", number=number + 1, rounds=request.rounds), level=1
        ),
    )
    host.streams.write_data(_table(engine, loaded.load_s, result))
    return DONE


def _synthetic_store(shape: str, precision: str, host: Host) -> Path:
    """The store of random weights, made on first use and kept in the cache."""
    from xverse_cli.models.stores import synthetic_path
    from xverse_cli.render.progress import byte_bar
    from xverse_runtime.demo import demo_directory
    from xverse_runtime.store.precision import PRESETS
    from xverse_runtime.store.synthetic import SHAPES, write_synthetic_store

    name = "int4" if precision == "auto" else precision
    if name not in PRESETS:
        raise UsageError("bench.precision", precision=name, supported=", ".join(PRESETS))
    path = synthetic_path(shape, name)
    if not path.exists():
        host.streams.say(text("bench.making", path=path))
        with byte_bar(text("bench.progress", shape=shape), host.watched_stderr) as progress:
            write_synthetic_store(
                SHAPES[shape], path, PRESETS[name], demo_directory(), progress=progress
            )
    return path


def _table(engine: "Engine", load_s: float, result: "BenchmarkResult") -> str:
    rows = [
        (text("bench.model"), f"{engine.model_name}, {engine.precision}, {engine.device}"),
        (text("bench.load"), f"{load_s:.2f} s"),
        (
            text("bench.prefill", tokens=result.prompt_tokens),
            text("bench.rate", rate=f"{result.prefill:.2f}"),
        ),
        (
            text("bench.decode", tokens=result.new_tokens),
            text("bench.rate", rate=f"{result.decode:.2f}"),
        ),
        (text("bench.bytes"), f"{result.bytes_per_token / 1e9:.3f} GB"),
        (text("bench.bandwidth"), f"{result.read_bandwidth / 1e9:.1f} GB/s"),
        (text("bench.share"), f"{result.bandwidth_share:.3f}"),
    ]
    width = max(len(name) for name, _ in rows)
    return "".join(f"{name:{width}}  {value}\n" for name, value in rows)
