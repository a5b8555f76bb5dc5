"""The bar that shows how far loading or converting is.

Rich is imported only where someone is watching.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from xverse_cli.messages import text
from xverse_runtime.types import LoadProgress, ProgressCallback


def compiling(progress: LoadProgress) -> tuple[str, ...]:
    """How far kernels are, while there are any to compile."""
    done, total = progress.done_kernels, progress.total_kernels
    return (text("load.kernels", done=done, total=total),) if done < total else ()


@contextmanager
def byte_bar(description: str, stream: TextIO | None) -> Iterator[ProgressCallback]:
    """Bytes done, rate and time left on ``stream``, gone at the end; ``None`` shows nothing."""
    if stream is None:
        yield lambda progress: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    console = Console(file=stream, markup=False, emoji=False, highlight=False)
    if console.is_dumb_terminal:
        stream.write(description + "\n")
        stream.flush()
        yield lambda progress: None
        return
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(description, total=None)

        def show(progress: LoadProgress) -> None:
            bar.update(
                task,
                description=" · ".join((description, *compiling(progress))),
                completed=progress.done_bytes,
                total=progress.total_bytes,
            )

        yield show
