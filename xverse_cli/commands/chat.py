"""`xverse chat`: talk to a model."""

# No postponed annotations: Typer would compile every one of them anew on each start.

from collections.abc import Mapping
from functools import partial
from typing import Annotated

import typer

from xverse_cli import options
from xverse_cli.exit_codes import DONE, PARTLY_FAILED
from xverse_cli.host import Host, Job
from xverse_cli.messages import text

Continue = Annotated[bool, typer.Option("--continue", "-c", help=text("help.continue"))]
Resume = Annotated[
    str | None,
    typer.Option("--resume", metavar="SESSION", help=text("help.resume"), show_default=False),
]
Save = Annotated[
    bool | None, typer.Option("--save/--no-save", help=text("help.save"), show_default=False)
]


def register(app: typer.Typer) -> None:
    app.command("chat", help=text("help.chat"))(chat)


def chat(
    ctx: typer.Context,
    model: options.Model = None,
    go_on: Continue = False,
    resume: Resume = None,
    save: Save = None,
    overflow: Annotated[str | None, options.setting("overflow", "POLICY")] = None,
    editing: Annotated[str | None, options.setting("editing", "MODE")] = None,
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
    from xverse_cli.chat.quiet import quiet_typing
    from xverse_cli.chat.start import prepare
    from xverse_cli.streams import is_terminal

    chat = prepare(flags, host)
    if not is_terminal(host.streams.stdin):
        chat.talk()
    else:
        with quiet_typing(host.streams):
            chat.talk()
    # At a terminal the user has seen what failed; a script only sees the exit code.
    return PARTLY_FAILED if chat.failed_turns and not chat.interactive else DONE
