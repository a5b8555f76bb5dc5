"""The options that commands share, as annotations. Their values are read by `values`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, TypeVar

import typer

from xverse_cli.messages import text
from xverse_cli.settings import DEFAULT_MODEL, SETTINGS
from xverse_cli.streams import QUIET

T = TypeVar("T")


def read_with(reader: Callable[[object], T]) -> Callable[[str], T]:
    """A parser for Typer whose error names the option and what was expected."""

    def parse(value: str) -> T:
        try:
            return reader(value)
        except ValueError as error:
            problem = text("expected.not", value=value, expected=str(error))
            raise typer.BadParameter(problem) from None

    return parse


def setting(key: str, metavar: str, *names: str, default: str | None = None) -> Any:
    """The option of a setting; it has no default of its own, so that lower layers show through.

    Args:
        default: what applies where no layer says anything, to be told in the help.
    """
    option = "--" + key.replace("_", "-")
    return typer.Option(
        option,
        *names,
        parser=read_with(SETTINGS[key]),
        metavar=metavar,
        help=text(f"help.{key}"),
        show_default=default or False,
    )


Model = Annotated[str | None, setting("model", "MODEL", "-m", default=DEFAULT_MODEL)]
Device = Annotated[str | None, setting("device", "DEVICE")]
Precision = Annotated[str | None, setting("precision", "PRECISION")]
Context = Annotated[int | None, setting("context", "TOKENS")]
ChatTemplate = Annotated[str | None, setting("chat_template", "TEMPLATE")]
Kv = Annotated[str | None, setting("kv", "FORMAT")]
Threads = Annotated[int | None, setting("threads", "N")]
Backend = Annotated[str | None, setting("backend", "KERNELS")]
CudaGraph = Annotated[
    bool | None,
    typer.Option("--cuda-graph/--no-cuda-graph", help=text("help.cuda_graph"), show_default=False),
]
Lookup = Annotated[
    bool | None,
    typer.Option("--lookup/--no-lookup", help=text("help.lookup"), show_default=False),
]
GpuMemory = Annotated[int | None, setting("gpu_memory", "SIZE")]
CpuMemory = Annotated[int | None, setting("cpu_memory", "SIZE")]
Markdown = Annotated[
    bool | None,
    typer.Option("--markdown/--plain", help=text("help.markdown"), show_default=False),
]
System = Annotated[str | None, setting("system", "TEXT")]
Temperature = Annotated[float | None, setting("temperature", "T")]
TopK = Annotated[int | None, setting("top_k", "K")]
TopP = Annotated[float | None, setting("top_p", "P")]
MinP = Annotated[float | None, setting("min_p", "P")]
RepetitionPenalty = Annotated[float | None, setting("repetition_penalty", "R")]
MaxTokens = Annotated[int | None, setting("max_tokens", "N")]
Seed = Annotated[int | None, setting("seed", "N")]
Json = Annotated[bool, typer.Option("--json", help=text("help.json"))]
Verbose = Annotated[
    int,
    typer.Option("-v", "--verbose", count=True, help=text("help.verbose"), show_default=False),
]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help=text("help.quiet"))]


def verbosity(verbose: int, quiet: bool) -> int:
    """How much to say on stderr."""
    return QUIET if quiet else verbose
