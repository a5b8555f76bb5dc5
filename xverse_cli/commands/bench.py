"""`xverse bench`: how fast a model runs here, beside what the machine's memory allows."""

# No postponed annotations: Typer would compile every one of them anew on each start.

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from xverse_cli import options
from xverse_cli.exit_codes import DONE
from xverse_cli.host import Host, Job
from xverse_cli.messages import figure, text
from xverse_cli.values import choice, integer
from xverse_runtime.errors import UsageError

if TYPE_CHECKING:
    from xverse_runtime.benchmark import BenchmarkResult
    from xverse_runtime.engine import Engine

PROMPT_TOKENS, NEW_TOKENS, ROUNDS = 128, 16, 3
AGREEMENT = 0.05  # rounds that differ by less agree on three digits, others on two

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

Simulate = Annotated[bool, typer.Option("--simulate", help=text("help.bench_simulate"))]
MachineName = Annotated[
    str | None,
    typer.Option("--machine", metavar="GPU", help=text("help.bench_machine"), show_default=False),
]
Slots = Annotated[
    int | None,
    typer.Option(
        "--slots",
        parser=options.read_with(integer(0, 65536)),
        metavar="N",
        help=text("help.bench_slots"),
        show_default=False,
    ),
]
Routing = Annotated[
    Path | None,
    typer.Option("--routing", metavar="FILE", help=text("help.bench_routing"), show_default=False),
]


def _count(name: str, minimum: int, key: str) -> typer.models.OptionInfo:
    reader = options.read_with(integer(minimum, 100_000))
    option: typer.models.OptionInfo = typer.Option(
        name, parser=reader, metavar="N", help=text(key), show_default=False
    )
    return option


@dataclass(frozen=True)
class Request:
    """What the command line asks `bench` for."""

    flags: Mapping[str, object]
    synthetic: str | None
    prompt_tokens: int
    new_tokens: int
    rounds: int
    as_json: bool


def register(app: typer.Typer) -> None:
    app.command("bench", help=text("help.bench"))(bench)


def bench(
    ctx: typer.Context,
    model: options.Model = None,
    synthetic: Synthetic = None,
    precision: options.Precision = None,
    prompt_tokens: Annotated[int | None, _count("--prompt-tokens", 1, "help.bench_prompt")] = None,
    new_tokens: Annotated[int | None, _count("--new-tokens", 2, "help.bench_new")] = None,
    rounds: Annotated[int | None, _count("--rounds", 1, "help.bench_rounds")] = None,
    device: options.Device = None,
    context: options.Context = None,
    kv: options.Kv = None,
    threads: options.Threads = None,
    backend: options.Backend = None,
    cuda_graph: options.CudaGraph = None,
    simulate: Simulate = False,
    machine: MachineName = None,
    slots: Slots = None,
    routing: Routing = None,
    as_json: options.Json = False,
    verbose: options.Verbose = 0,
    quiet: options.Quiet = False,
) -> Job:
    level = options.verbosity(verbose, quiet)
    if simulate:
        from xverse_cli.commands.simulate import SimulationRequest
        from xverse_cli.commands.simulate import run as run_simulation

        simulated = SimulationRequest(
            ctx.params, machine, slots, routing, prompt_tokens, new_tokens, as_json
        )
        return Job(partial(run_simulation, simulated), level)
    request = Request(
        ctx.params,
        synthetic,
        prompt_tokens or PROMPT_TOKENS,
        new_tokens or NEW_TOKENS,
        rounds or ROUNDS,
        as_json,
    )
    return Job(partial(run, request), level)


def run(request: Request, host: Host) -> int:
    """Load or make the model, measure, print a table."""
    from dataclasses import replace

    from xverse_cli.report import report_model
    from xverse_runtime.benchmark import run_benchmark
    from xverse_runtime.engine import Engine

    settings = host.settings(request.flags)
    for option in ("machine", "slots", "routing"):
        if request.flags.get(option) is not None:
            raise UsageError("bench.not_simulated", option=option)
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
    if request.as_json:
        from xverse_cli.json_output import to_json

        host.streams.write_data(to_json(_object(engine, loaded.load_s, result)) + "\n")
    else:
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


def _object(engine: "Engine", load_s: float, result: "BenchmarkResult") -> dict[str, Any]:
    return {
        "model": engine.model_name,
        "precision": engine.precision,
        "device": engine.device,
        "load_s": round(load_s, 4),
        "prompt_tokens": result.prompt_tokens,
        "new_tokens": result.new_tokens,
        "rounds": result.rounds,
        "prefill_tokens_per_s": round(result.prefill, 2),
        "decode_tokens_per_s": round(result.decode, 2),
        "bytes_per_token": result.bytes_per_token,
        "read_bandwidth": round(result.read_bandwidth),
        "bandwidth_share": round(result.bandwidth_share, 4),
    }


def _table(engine: "Engine", load_s: float, result: "BenchmarkResult") -> str:
    from xverse_cli.render.columns import padded, widest

    rows = [
        (text("bench.model"), f"{engine.model_name}, {engine.precision}, {engine.device}"),
        (text("bench.load"), f"{load_s:.2f} s"),
        (
            text("bench.prefill", tokens=result.prompt_tokens),
            text("bench.rate", rate=_measured(result.prefills)),
        ),
        (
            text("bench.decode", tokens=result.new_tokens),
            text("bench.rate", rate=_measured(result.decodes)),
        ),
        (text("bench.bytes"), f"{figure(result.bytes_per_token / 1e9)} GB"),
        (text("bench.bandwidth"), f"{_measured([one / 1e9 for one in result.bandwidths])} GB/s"),
        (text("bench.share"), figure(result.bandwidth_share, 2)),
    ]
    width = widest(name for name, _ in rows)
    return "".join(f"{padded(name, width)}  {value}\n" for name, value in rows)


def _measured(rounds: Sequence[float]) -> str:
    """The median with the digits that the rounds agree on, and what they range from and to."""
    from statistics import median

    middle, least, most = median(rounds), min(rounds), max(rounds)
    digits = 3 if most - least < AGREEMENT * middle else 2
    shown, low, high = (figure(one, digits) for one in (middle, least, most))
    return shown if low == high else text("bench.range", figure=shown, least=low, most=high)
