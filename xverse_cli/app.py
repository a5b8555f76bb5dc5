"""The Typer app, and the one place where errors become messages and exit codes."""

from __future__ import annotations

import errno
import gc
import os
from collections.abc import Sequence
from typing import cast

import typer

from xverse_cli import exit_codes, messages, settings
from xverse_cli.help_pages import with_our_help
from xverse_cli.host import Host, Job
from xverse_cli.interrupts import terminate_by_exception
from xverse_cli.streams import abandon_stdout, naming_stdout, standard_streams
from xverse_cli.wording import say_error
from xverse_runtime.errors import UsageError

PROGRAM = "xverse"
# Typer carries its own copy of click or depends on it, by version: reach the base from what it
# exports in both cases.
_ParseError = cast(type[Exception], typer.BadParameter.__mro__[2])


def build_app() -> typer.Typer:
    """The app with all commands, worded in the language in use."""
    from xverse_cli.commands import (
        bench,
        chat,
        convert,
        doctor,
        generate,
        listing,
        pull,
        rm,
        sessions,
        show,
        verify,
    )

    app = typer.Typer(
        help=messages.text("help.app"),
        epilog=messages.text("help.start"),
        rich_markup_mode=None,
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    show_version = typer.Option(False, "--version", help=messages.text("help.version"))

    @app.callback(invoke_without_command=True)
    def root(ctx: typer.Context, version: bool = show_version) -> None:
        if version:
            typer.echo(messages.text("version", version=_version()))
            raise typer.Exit
        if ctx.invoked_subcommand is None:
            typer.echo(ctx.get_help())

    chat.register(app)
    sessions.register(app)
    generate.register(app)
    pull.register(app)
    listing.register(app)
    show.register(app)
    convert.register(app)
    verify.register(app)
    rm.register(app)
    bench.register(app)
    doctor.register(app)
    return app


def run(argv: Sequence[str], host: Host | None = None) -> int:
    """Run one command line and return its exit code; nothing is raised.

    Args:
        argv: the arguments without the program's name.
        host: the outside; the process's own when not given.
    """
    host = host or Host(standard_streams(), os.environ)
    messages.use(settings.language(host.environ))
    try:
        with terminate_by_exception():
            job = _parse(argv)
            if job is None:
                return exit_codes.DONE
            host.streams.verbosity = job.verbosity
            gc.enable()
            return job.run(host)
    except BaseException as error:
        return _report(error, host)


def _parse(argv: Sequence[str]) -> Job | None:
    """The job a command line asks for; ``None`` when parsing did it all (help, version)."""
    command = with_our_help(typer.main.get_command(build_app()))
    try:
        with naming_stdout():  # where help and version go
            result = command.main(list(argv), prog_name=PROGRAM, standalone_mode=False)
    except _ParseError as error:
        command_path = getattr(getattr(error, "ctx", None), "command_path", PROGRAM)
        from xverse_cli.usage_words import usage_words

        detail = error.format_message()  # type: ignore[attr-defined]
        words = usage_words(detail, _options(getattr(error, "ctx", None)))
        raise UsageError("usage", detail=words, command=command_path) from None
    except SystemExit:
        raise BrokenPipeError from None  # how Typer ends when nobody reads its help
    if result == exit_codes.INTERRUPTED:
        raise KeyboardInterrupt
    return result if isinstance(result, Job) else None


def _options(context: typer.Context | None) -> list[str]:
    """All names of the options of the command that was being read."""
    if context is None:
        return []
    parameters = context.command.get_params(context)
    return [name for one in parameters for name in (*one.opts, *one.secondary_opts)]


def _report(error: BaseException, host: Host) -> int:
    """Say what went wrong and what to try next; the exit code."""
    streams, code = host.streams, exit_codes.exit_code(error)
    if _is_closed_pipe(error):
        abandon_stdout(streams)
        return exit_codes.DONE
    if isinstance(error, OSError):
        abandon_stdout(streams)
    if isinstance(error, (KeyboardInterrupt, typer.Abort)):
        streams.say(messages.text("interrupted"))
        return exit_codes.INTERRUPTED
    say_error(error, host)
    return code


def _is_closed_pipe(error: BaseException) -> bool:
    if isinstance(error, BrokenPipeError):
        return True
    # Windows reports a pipe that nobody reads as an invalid argument.
    return os.name == "nt" and isinstance(error, OSError) and error.errno == errno.EINVAL


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("xverse-cli")
    except PackageNotFoundError:
        return "0 (not installed)"
