"""`xverse show`: what a model is, without running it."""

# No postponed annotations: Typer would compile every one of them anew on each start.

from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from xverse_cli import options
from xverse_cli.exit_codes import DONE
from xverse_cli.host import Host, Job
from xverse_cli.messages import size, text
from xverse_cli.values import model_name
from xverse_runtime.errors import ModelNotFoundError

if TYPE_CHECKING:
    from xverse_cli.models.find import FoundModel
    from xverse_cli.models.portrait import Portrait

Model = Annotated[
    str,
    typer.Argument(parser=options.read_with(model_name), metavar="MODEL", help=text("help.model")),
]


def register(app: typer.Typer) -> None:
    app.command("show", help=text("help.show"))(show)


def show(
    model: Model,
    as_json: options.Json = False,
    verbose: options.Verbose = 0,
    quiet: options.Quiet = False,
) -> Job:
    return Job(partial(run, model, as_json), options.verbosity(verbose, quiet))


def run(model: str, as_json: bool, host: Host) -> int:
    """Everything known about a model, on stdout."""
    from xverse_cli.models.portrait import portray

    portrait = portray(_find(model))
    if as_json:
        from xverse_cli.json_output import to_json

        host.streams.write_data(to_json(portrait.to_json()) + "\n")
    else:
        lines = _lines(portrait, host.streams.stdout_columns)
        host.streams.write_data("".join(f"{line}\n" for line in lines))
    return DONE


def _find(model: str) -> "FoundModel":
    """The published files; a store where they are not here, or not whole; else what there is."""
    from xverse_cli.models.find import find_model, find_present

    try:
        return find_model(model)
    except ModelNotFoundError as error:
        for find in (partial(find_model, model, "auto"), partial(find_present, model)):
            with suppress(ModelNotFoundError):
                return find()
        raise error


def _lines(portrait: "Portrait", width: int | None) -> Iterator[str]:
    from xverse_cli.commands.listing import aligned
    from xverse_cli.render.facts import fact_lines, remark_lines
    from xverse_cli.report import template_line

    yield from fact_lines(_facts(portrait), width)
    for remark in (template_line(portrait.template), *_licence_lines(portrait)):
        yield from remark_lines(remark, width)
    yield text("show.files", files=len(portrait.files), size_bytes=portrait.bytes)
    rows = [
        ("  " + name, text("show.absent") if count is None else size(count))
        for name, count in portrait.files.items()
    ]
    yield from aligned(rows) if rows else ()
    for precision, path in portrait.stores.items():
        yield text("show.store", precision=precision, path=path)


def _facts(portrait: "Portrait") -> Iterator[tuple[str, str]]:
    config = portrait.config
    yield text("show.model"), portrait.name
    if portrait.revision or portrait.commit:
        yield text("show.revision"), " ".join(filter(None, (portrait.revision, portrait.commit)))
    yield text("show.path"), str(portrait.path)
    yield (
        text("show.parameters"),
        text(
            "show.parameters_are",
            total=_count(portrait.parameters),
            active=_count(portrait.active_parameters),
        ),
    )
    parts = [f"{part} {form}" for part, form in portrait.parts.items()]
    yield text("show.precision"), ", ".join(parts) or config.dtype or text("show.untold")
    yield text("show.layers"), str(config.num_layers)
    yield text("show.hidden"), str(config.hidden_size)
    yield (
        text("show.attention"),
        text(
            "show.attention_is",
            heads=config.num_heads,
            kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
        ),
    )
    yield text("show.mlp"), _mlp(portrait)
    yield text("show.vocabulary"), str(config.vocab_size)
    yield text("show.context"), text("show.tokens", tokens=config.trained_context)


def _mlp(portrait: "Portrait") -> str:
    config = portrait.config
    if not config.is_moe:
        return text("show.dense", width=config.intermediate_size)
    return text(
        "show.experts",
        experts=config.num_experts,
        chosen=config.top_k,
        shared=config.num_shared_experts,
        width=config.intermediate_size,
    )


def _licence_lines(portrait: "Portrait") -> Iterator[str]:
    if portrait.is_demo:
        yield text("show.licence_demo")
        return
    if portrait.licence_files:
        yield text("show.licence_files", names=portrait.licence_files)
    yield text("pull.licence", licence=text("pull.licence_untold"))
    if portrait.accepted:
        from xverse_cli.render.moment import moment

        yield text("show.licence_accepted", when=moment(portrait.accepted))


def _count(number: int) -> str:
    """A number of parameters for people: ``25.8 billion``."""
    for limit, key in ((10**9, "show.billion"), (10**6, "show.million")):
        if number >= limit:
            return text(key, number=f"{number / limit:.1f}")
    return str(number)
