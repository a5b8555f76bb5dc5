"""`xverse verify`: read every byte of a store and compare it with what was written."""

# No postponed annotations: Typer would compile every one of them anew on each start.

from functools import partial

import typer

from xverse_cli import options
from xverse_cli.commands.convert import ModelArgument
from xverse_cli.exit_codes import DONE
from xverse_cli.host import Host, Job
from xverse_cli.messages import text
from xverse_runtime.errors import UsageError


def register(app: typer.Typer) -> None:
    app.command("verify", help=text("help.verify"))(verify)


def verify(model: ModelArgument, verbose: options.Verbose = 0, quiet: options.Quiet = False) -> Job:
    return Job(partial(run, model), options.verbosity(verbose, quiet))


def run(model: str, host: Host) -> int:
    """Verify a store; anything else has no digests to compare with."""
    from xverse_cli.models.find import find_model
    from xverse_cli.render.progress import byte_bar
    from xverse_runtime.model_dir import ModelDirectory
    from xverse_runtime.store.manifest import is_store
    from xverse_runtime.store.verify import verify_store

    found = find_model(model, "auto")
    if not is_store(ModelDirectory.open(found.path)):
        raise UsageError("verify.no_store", path=found.path, model=model)
    with byte_bar(text("verify.progress", model=model), host.watched_stderr) as progress:
        manifest = verify_store(found.path, progress)
    size = sum(record.bytes for record in manifest.files.values())
    files = len(manifest.files)
    host.streams.say(text("verify.done", path=found.path, files=files, size_bytes=size))
    return DONE
