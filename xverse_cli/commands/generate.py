"""`xverse generate`: answer one prompt, or continue a text."""

# No postponed annotations: Typer would compile every one of them anew on each start.

from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from xverse_cli import options
from xverse_cli.exit_codes import DONE, INTERRUPTED
from xverse_cli.host import Host, Job
from xverse_cli.messages import text
from xverse_cli.values import integer, unescape
from xverse_runtime.errors import UsageError, XverseError

if TYPE_CHECKING:
    from xverse_cli.generation import Reply
    from xverse_cli.render.stream import TokenSink
    from xverse_runtime.types import SamplingParams, TextGenerator

Prompt = Annotated[
    list[str] | None,
    typer.Argument(metavar="[PROMPT]...", help=text("help.prompt"), show_default=False),
]
File = Annotated[
    list[str] | None,
    typer.Option("--file", "-f", metavar="FILE", help=text("help.file"), show_default=False),
]
Stop = Annotated[
    list[str] | None,
    typer.Option(
        "--stop",
        parser=options.read_with(unescape),
        metavar="TEXT",
        help=text("help.stop"),
        show_default=False,
    ),
]
Logprobs = Annotated[
    int | None,
    typer.Option(
        "--logprobs",
        parser=options.read_with(integer(0)),
        metavar="K",
        help=text("help.logprobs"),
        show_default=False,
    ),
]
RecordRouting = Annotated[
    str | None,
    typer.Option(
        "--record-routing", metavar="FILE", help=text("help.record_routing"), show_default=False
    ),
]
Raw = Annotated[bool, typer.Option("--raw", help=text("help.raw"))]
Json = Annotated[bool, typer.Option("--json", help=text("help.json"))]


@dataclass(frozen=True)
class Request:
    """What the command line asks `generate` for."""

    arguments: tuple[str, ...]
    files: tuple[str, ...]
    flags: Mapping[str, object]
    raw: bool
    as_json: bool
    stop: tuple[str, ...]
    logprobs: int | None
    record_routing: str | None


def register(app: typer.Typer) -> None:
    app.command("generate", help=text("help.generate"))(generate)


def generate(
    ctx: typer.Context,
    prompt: Prompt = None,
    model: options.Model = None,
    file: File = None,
    system: options.System = None,
    raw: Raw = False,
    as_json: Json = False,
    temperature: options.Temperature = None,
    top_k: options.TopK = None,
    top_p: options.TopP = None,
    min_p: options.MinP = None,
    repetition_penalty: options.RepetitionPenalty = None,
    max_tokens: options.MaxTokens = None,
    seed: options.Seed = None,
    stop: Stop = None,
    logprobs: Logprobs = None,
    record_routing: RecordRouting = None,
    device: options.Device = None,
    precision: options.Precision = None,
    context: options.Context = None,
    chat_template: options.ChatTemplate = None,
    kv: options.Kv = None,
    threads: options.Threads = None,
    backend: options.Backend = None,
    cuda_graph: options.CudaGraph = None,
    lookup: options.Lookup = None,
    gpu_memory: options.GpuMemory = None,
    cpu_memory: options.CpuMemory = None,
    markdown: options.Markdown = None,
    verbose: options.Verbose = 0,
    quiet: options.Quiet = False,
) -> Job:
    if raw and system is not None:
        raise UsageError("input.system_with_raw")
    if logprobs is not None and not as_json:
        raise UsageError("input.logprobs_without_json")
    request = Request(
        arguments=tuple(prompt or ()),
        files=tuple(file or ()),
        flags=ctx.params,
        raw=raw,
        as_json=as_json,
        stop=tuple(stop or ()),
        logprobs=logprobs,
        record_routing=record_routing,
    )
    return Job(partial(run, request), options.verbosity(verbose, quiet))


def run(request: Request, host: Host) -> int:
    """Assemble the prompt, load the model, generate, print."""
    from xverse_cli.generation import Reply, sampling_params
    from xverse_cli.prompt_input import assemble_prompt
    from xverse_cli.render.stream import reply_sink
    from xverse_cli.report import report_model, report_reply

    settings = host.settings(request.flags)
    prompt = assemble_prompt(request.arguments, request.files, host.streams)
    loaded = host.load_model(settings)
    engine = loaded.engine
    report_model(loaded, host.streams)
    params = sampling_params(
        engine.default_sampling, settings, stop=request.stop, logprobs=request.logprobs
    )
    prompt_ids = _encode(engine, prompt, settings.system, request.raw)
    reply = Reply()
    # What --raw continues need not be Markdown.
    markdown = False if request.raw and settings.markdown is None else settings.markdown
    sink = None if request.as_json else reply_sink(host.streams, host.environ, markdown)
    with _recorded(engine, request.record_routing):
        _stream(engine, prompt_ids, params, sink, reply)
    if request.as_json:
        from xverse_cli.json_output import reply_object, to_json

        result = reply_object(loaded, params, prompt_ids, reply)
        host.streams.write_data(to_json(result) + "\n")
    limit_chosen = settings.max_tokens is not None
    report_reply(reply, engine, host.streams, limit_chosen=limit_chosen)
    return INTERRUPTED if reply.finish_reason == "interrupted" else DONE


@contextmanager
def _recorded(engine: "TextGenerator", path: str | None) -> Iterator[None]:
    """Record which experts are chosen, if there is a file for it."""
    if path is None:
        yield
        return
    from pathlib import Path

    from xverse_runtime.engine import Engine

    if not isinstance(engine, Engine):
        raise UsageError("trace.not_local")
    with closing(engine.record_routing(Path(path))):
        yield


def _encode(engine: "TextGenerator", prompt: str, system: str | None, raw: bool) -> list[int]:
    from xverse_runtime.types import Message

    if raw:
        return engine.encode_prompt(prompt)
    messages = [Message("system", system)] if system else []
    return engine.encode_chat([*messages, Message("user", prompt)])


def _stream(
    engine: "TextGenerator",
    prompt_ids: list[int],
    params: "SamplingParams",
    sink: "TokenSink | None",
    reply: "Reply",
) -> None:
    from xverse_cli.generation import run_generation
    from xverse_cli.interrupts import cancel_on_signal
    from xverse_runtime.types import CancelFlag

    cancel = CancelFlag()
    write = sink.write if sink else lambda piece: None
    with cancel_on_signal(cancel, second_kills=True):
        try:
            run_generation(engine, prompt_ids, params, cancel, write, reply)
        except XverseError:
            if sink and reply.text:
                sink.close()  # the message that follows begins on a line of its own
            raise
        if sink:
            sink.close()
