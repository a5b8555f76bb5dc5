"""The bar that shows how far loading is. Rich is imported only where someone is watching."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from xverse_cli.messages import text
from xverse_runtime.types import LoadProgress, ProgressCallback


@contextmanager
def loading_bar(name: str, stream: TextIO | None) -> Iterator[ProgressCallback]:
    """A bar on ``stream`` that goes away when loading ends; ``None`` shows nothing."""
    if stream is None:
        yield lambda progress: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn())
    console = Console(file=stream, markup=False, emoji=False, highlight=False)
    if console.is_dumb_terminal:
        stream.write(text("load.progress", model=name) + "\n")
        stream.flush()
        yield lambda progress: None
        return
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(text("load.progress", model=name), total=None)

        def show(progress: LoadProgress) -> None:
            bar.update(task, completed=progress.done_bytes, total=progress.total_bytes)

        yield show
