"""`xverse sessions`: the saved conversations."""

# No postponed annotations: Typer would compile every one of them anew on each start.

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from xverse_cli import options
from xverse_cli.commands.convert import Yes
from xverse_cli.exit_codes import DONE
from xverse_cli.host import Host, Job
from xverse_cli.messages import error_text, text
from xverse_cli.values import choice
from xverse_runtime.errors import UsageError, XverseError

if TYPE_CHECKING:
    from xverse_cli.chat.sessions.reading import SavedSession

Session = Annotated[str, typer.Argument(metavar="SESSION", help=text("help.session"))]
Sessions = Annotated[
    list[str] | None, typer.Argument(metavar="[SESSION]...", help=text("help.session"))
]
Format = Annotated[
    str | None,
    typer.Option(
        "--format",
        parser=options.read_with(choice("markdown", "json")),
        metavar="FORMAT",
        help=text("help.export_format"),
        show_default=False,
    ),
]
Output = Annotated[
    Path | None,
    typer.Option(
        "--output", "-o", metavar="FILE", help=text("help.export_output"), show_default=False
    ),
]
All = Annotated[bool, typer.Option("--all", help=text("help.sessions_all"))]


def register(app: typer.Typer) -> None:
    group = typer.Typer(help=text("help.sessions"), rich_markup_mode=None)
    group.callback(invoke_without_command=True)(without_command)
    group.command("list", help=text("help.sessions_list"))(list_sessions)
    group.command("show", help=text("help.sessions_show"))(show)
    group.command("export", help=text("help.sessions_export"))(export)
    group.command("rm", help=text("help.sessions_rm"))(rm)
    app.add_typer(group, name="sessions")


def without_command(ctx: typer.Context) -> Job | None:
    return _job(partial(_list, False), False) if ctx.invoked_subcommand is None else None


def list_sessions(as_json: options.Json = False, quiet: options.Quiet = False) -> Job:
    return _job(partial(_list, as_json), quiet)


def show(session: Session, quiet: options.Quiet = False) -> Job:
    return _job(partial(_export, session, "markdown", None), quiet)


def export(
    session: Session,
    kind: Format = None,
    output: Output = None,
    quiet: options.Quiet = False,
) -> Job:
    return _job(partial(_export, session, kind, output), quiet)


def rm(
    sessions: Sessions = None,
    everything: All = False,
    yes: Yes = False,
    quiet: options.Quiet = False,
) -> Job:
    return _job(partial(_rm, tuple(sessions or ()), everything, yes), quiet)


def _job(run: Callable[[Host], int], quiet: bool) -> Job:
    return Job(run, options.verbosity(0, quiet))


def _list(as_json: bool, host: Host) -> int:
    from xverse_cli.commands.listing import fitted
    from xverse_cli.render.moment import moment

    sessions = _readable(host)
    if as_json:
        from xverse_cli.json_output import to_json

        host.streams.write_data(to_json([_object(session) for session in sessions]) + "\n")
    elif sessions:
        columns = ("session", "changed", "turns", "model", "title")
        rows = [tuple(text(f"session.heading_{column}") for column in columns)]
        rows += [
            (
                session.id,
                moment(session.changed),
                str(len(session.conversation.all_turns)),
                session.asked_for,
                session.title,
            )
            for session in sessions
        ]
        lines = fitted(rows, host.streams.stdout_columns, apart=-1)
        host.streams.write_data("".join(f"{line}\n" for line in lines))
    else:
        host.streams.say(text("session.none_yet"))
    return DONE


def _readable(host: Host) -> "list[SavedSession]":
    """All sessions; says which ones cannot be read."""
    from xverse_cli.chat.sessions.folder import session_paths
    from xverse_cli.chat.sessions.reading import read_session

    found = []
    for path in session_paths():
        try:
            found.append(read_session(path))
        except XverseError as error:
            host.streams.warn(error_text(error)[0])
    return found


def _object(session: "SavedSession") -> dict[str, Any]:
    return {
        "session": session.id,
        "name": session.name or None,
        "title": session.title,
        "model": session.asked_for,
        "created": session.created or None,
        "changed": session.changed or None,
        "turns": len(session.conversation.all_turns),
        "damaged_lines": session.damaged,
        "path": str(session.path),
    }


def _export(wanted: str, kind: str | None, output: Path | None, host: Host) -> int:
    from xverse_cli.chat.sessions.export import export_to, exported
    from xverse_cli.chat.sessions.folder import find_session

    session = find_session(wanted)
    if session.damaged:
        host.streams.warn(text("session.damaged", count=session.damaged))
    if output is not None:
        path = export_to(output, session, kind)
        host.streams.say(text("session.exported", path=path))
    else:
        from xverse_cli.render.sanitize import sanitize

        document = exported(session, kind or "markdown")
        shown = sanitize(document) if host.streams.stdout_is_terminal else document
        host.streams.write_data(shown)
    return DONE


def _rm(wanted: tuple[str, ...], everything: bool, yes: bool, host: Host) -> int:
    """Raises UsageError: ``session.which``, ``session.unasked``, ``session.in_use``."""
    from xverse_cli.chat.sessions.folder import find_session, remove_session, session_paths

    if not wanted and not everything:
        raise UsageError("session.which")
    paths = session_paths() if everything else [find_session(one).path for one in wanted]
    if not yes and paths:
        if not host.streams.stdin_is_terminal:
            raise UsageError("session.unasked")
        for path in paths:
            host.streams.error(path.stem)
        if not host.streams.confirm(text("session.question", count=len(paths))):
            host.streams.say(text("session.kept"))
            return DONE
    for path in paths:
        remove_session(path)
        host.streams.say(text("session.deleted", session=path.stem))
    return DONE
