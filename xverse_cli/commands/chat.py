"""`xverse chat`: talk to a model."""

# No postponed annotations: Typer would compile every one of them anew on each start.

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

import typer

from xverse_cli import options
from xverse_cli.exit_codes import DONE, PARTLY_FAILED
from xverse_cli.host import Host, Job
from xverse_cli.messages import text

if TYPE_CHECKING:
    from xverse_cli.chat.input import MessageSource
    from xverse_cli.models.find import FoundModel
    from xverse_cli.settings import Settings


def register(app: typer.Typer) -> None:
    app.command("chat", help=text("help.chat"))(chat)


def chat(
    ctx: typer.Context,
    model: options.Model = None,
    system: options.System = None,
    temperature: options.Temperature = None,
    top_k: options.TopK = None,
    top_p: options.TopP = None,
    min_p: options.MinP = None,
    repetition_penalty: options.RepetitionPenalty = None,
    max_tokens: options.MaxTokens = None,
    seed: options.Seed = None,
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
    return Job(partial(run, ctx.params), options.verbosity(verbose, quiet))


def run(flags: Mapping[str, object], host: Host) -> int:
    """Load the model and talk until the user leaves."""
    from xverse_cli.chat.input import message_source
    from xverse_cli.chat.quiet import quiet_typing
    from xverse_cli.models.offer import find_or_fetch

    settings = host.settings(flags)
    source = message_source(host.streams)
    model = find_or_fetch(settings, host)
    if not source.interactive:
        return _talk(settings, model, source, host)
    with quiet_typing(host.streams):
        return _talk(settings, model, source, host)


def _talk(settings: "Settings", model: "FoundModel", source: "MessageSource", host: Host) -> int:
    from xverse_cli.chat.conversation import Conversation
    from xverse_cli.chat.repl import Repl
    from xverse_cli.chat.turn import TurnRunner
    from xverse_cli.chat.welcome import welcome
    from xverse_cli.generation import sampling_params
    from xverse_cli.render.stream import reply_sink
    from xverse_cli.report import report_model

    streams = host.streams
    loaded = host.load_model(settings, model)
    engine = loaded.engine
    report_model(loaded, streams)
    welcome(engine, settings.model, streams, interactive=source.interactive)
    params = sampling_params(engine.default_sampling, settings)
    runner = TurnRunner(
        engine,
        Conversation(settings.system),
        params,
        streams,
        lambda: reply_sink(streams, host.environ, settings.markdown),
        limit_chosen=settings.max_tokens is not None,
    )
    repl = Repl(runner, source, host)
    repl.run()
    # At a terminal the user has seen what failed; a script only sees the exit code.
    return PARTLY_FAILED if repl.failed_turns and not source.interactive else DONE
