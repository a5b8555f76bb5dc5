"""`xverse list`: which models are on this machine, and what they take."""

# No postponed annotations: Typer would compile every one of them anew on each start.

from collections.abc import Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import typer

from xverse_cli import options
from xverse_cli.exit_codes import DONE
from xverse_cli.host import Host, Job
from xverse_cli.messages import size, text

if TYPE_CHECKING:
    from xverse_cli.models.inventory import StoredModel

_SHORT = 8  # letters of a commit


def register(app: typer.Typer) -> None:
    app.command("list", help=text("help.list"))(list_models)


def list_models(
    as_json: options.Json = False, verbose: options.Verbose = 0, quiet: options.Quiet = False
) -> Job:
    return Job(partial(run, as_json), options.verbosity(verbose, quiet))


def run(as_json: bool, host: Host) -> int:
    """One line for each model; the paths with `-v`."""
    from xverse_cli.models.inventory import stored_models, together_bytes

    models = stored_models()
    if as_json:
        from xverse_cli.json_output import to_json

        host.streams.write_data(to_json([_object(model) for model in models]) + "\n")
    elif models:
        rows = [_heading(), *map(_row, models)]
        lines = fitted(rows, host.streams.stdout_columns, apart=0)
        host.streams.write_data("".join(f"{line}\n" for line in lines))
        host.streams.write_data(text("list.sum", size_bytes=together_bytes(models)) + "\n")
        for command in _to_go_on(models):
            host.streams.say(text("list.go_on", command=command))
        for model in models:
            if model.cut and model.kind != "synthetic":
                command = _repair(model)
                host.streams.warn(text("list.damaged", names=model.cut, command=command))
            host.streams.say(text("list.path", model=model.name, path=model.path), level=1)
    else:
        host.streams.say(text("list.nothing"))
    return DONE


def aligned(rows: Iterable[tuple[str, ...]]) -> Iterator[str]:
    """Rows as lines, every column as wide as its widest cell."""
    from xverse_cli.render.columns import padded, widest
    from xverse_cli.render.sanitize import sanitize

    cells = [[sanitize(cell) for cell in row] for row in rows]
    widths = [widest(column) for column in zip(*cells, strict=True)]
    for row in cells:
        filled = (padded(cell, width) for cell, width in zip(row, widths, strict=True))
        yield "  ".join(filled).rstrip()


def fitted(rows: Iterable[tuple[str, ...]], width: int | None, *, apart: int) -> Iterator[str]:
    """Rows as `aligned` has them; on a screen that is too narrow one cell has a line of its own.

    Args:
        rows: each with the same cells.
        width: columns of the screen; ``None`` where there is none.
        apart: which cell that is: the first, with the others below it, or the last.
    """
    from xverse_cli.render.columns import columns
    from xverse_cli.render.sanitize import sanitize

    cells = [*rows]
    table = [*aligned(cells)]
    if width is None or all(columns(line) <= width for line in table):
        yield from table
        return
    others = aligned(row[1:] if apart == 0 else row[:-1] for row in cells)
    for row, line in zip(cells, others, strict=True):
        own = sanitize(row[apart])
        first, second = (own, line) if apart == 0 else (line, own)
        yield first
        yield f"  {second}"


def kind_text(model: "StoredModel") -> str:
    """``published``, ``store int4``, ``synthetic int4``."""
    return " ".join(filter(None, (text(f"list.kind_{model.kind}"), model.precision)))


def _heading() -> tuple[str, ...]:
    columns = ("model", "kind", "size", "revision", "used", "state")
    return tuple(text(f"list.heading_{column}") for column in columns)


def _row(model: "StoredModel") -> tuple[str, ...]:
    from xverse_cli.render.moment import moment

    revision = [", ".join(model.branches), (model.commit or "")[:_SHORT]]
    return (
        model.name,
        kind_text(model),
        size(model.bytes),
        " ".join(filter(None, revision)) or "–",
        moment(model.last_use),
        _state(model),
    )


def _state(model: "StoredModel") -> str:
    known = model.total_bytes > model.bytes
    if model.state == "incomplete" and known:
        here, total = model.bytes, model.total_bytes
        return text("list.state_part", here_bytes=here, total_bytes=total)
    return text(f"list.state_{model.state}")


def _to_go_on(models: "Iterable[StoredModel]") -> list[str]:
    """The commands that finish what is incomplete: one for a model that is packed as it comes."""
    whole = {one.hub_id for one in models if one.kind == "published" and one.state == "complete"}
    commands = {}
    for model in models:
        if model.state != "incomplete" or model.kind == "synthetic":
            continue
        named = model.hub_id
        command = f"xverse pull {named}"
        if model.precision and model.path.name.endswith(".partial"):
            packed = f"{named} --precision {model.precision}"
            command = f"xverse convert {packed}"
            if named not in whole:
                command = f"xverse pull {packed} --delete-source"
        commands[named] = command  # a store comes after the files that it is made of
    return [*commands.values()]


def _repair(model: "StoredModel") -> str:
    """What puts cut files right; a store is named by its path, as there may be several."""
    named = f"{model.hub_id} --published" if model.kind == "published" else str(model.path)
    return f"xverse verify {named} --repair"


def _object(model: "StoredModel") -> dict[str, Any]:
    from datetime import datetime, timezone

    used = model.last_use
    when = datetime.fromtimestamp(used, timezone.utc) if used else None
    return {
        "model": model.name,
        "kind": model.kind,
        "precision": model.precision,
        "path": str(model.path),
        "bytes": model.bytes,
        "total_bytes": max(model.bytes, model.total_bytes),
        "branches": [*model.branches],
        "commit": model.commit,
        "last_use": when.isoformat(timespec="seconds") if when else None,
        "state": model.state,
        "damaged": [*model.cut],
    }
