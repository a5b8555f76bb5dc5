"""The bars of a download, with the rate of the last seconds, and a line below them.

It imports Rich: only where someone is watching.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import TextIO

from rich.console import Console, RenderableType
from rich.constrain import Constrain
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
)
from rich.table import Column
from rich.text import Text

from xverse_cli.messages import size
from xverse_cli.render.download import Rate

_ECHO = 3  # columns left free: a Ctrl-C that the terminal shows as ^C must not break the line


class _Percent(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{int(task.percentage):>3}%", no_wrap=True)


class _Speed(ProgressColumn):
    """Bytes per second of the last seconds, in the units of the sizes beside it."""

    def render(self, task: Task) -> Text:
        rate = task.fields.get("rate")
        return Text("" if rate is None else f"{size(rate)}/s", no_wrap=True)


class _Left(ProgressColumn):
    """Time that is left at that rate."""

    def render(self, task: Task) -> Text:
        rate, total = task.fields.get("rate"), task.total or 0
        if not rate:
            return Text("--:--", no_wrap=True)
        seconds = int(max(0.0, total - task.completed) / rate)
        hours, minutes = divmod(seconds // 60, 60)
        told = f"{hours}:{minutes:02}:{seconds % 60:02}" if hours else ""
        return Text(told or f"{minutes:02}:{seconds % 60:02}", no_wrap=True)


class Bars(Progress):
    """Bars by name. ``below`` is a line under them, which may be empty."""

    below = ""

    def __init__(self, console: Console, clock: Callable[[], float]) -> None:
        self._screen, self._clock = console, clock
        self._shown: dict[str, tuple[TaskID, str, Rate]] = {}

        def whole() -> Column:
            return Column(no_wrap=True)

        super().__init__(  # on a narrow terminal the bar gives way first, and no line is broken
            TextColumn("{task.description}", markup=False, table_column=whole()),
            BarColumn(bar_width=None, table_column=Column(ratio=1)),
            _Percent(table_column=whole()),
            DownloadColumn(binary_units=True, table_column=whole()),
            _Speed(table_column=whole()),
            _Left(table_column=whole()),
            console=console,
            transient=True,
            refresh_per_second=5,
            expand=True,
        )

    @classmethod
    def on(cls, stream: TextIO, clock: Callable[[], float]) -> Bars | None:
        """``None`` where the terminal cannot show any."""
        console = Console(file=stream, markup=False, emoji=False, highlight=False)
        return None if console.is_dumb_terminal else cls(console, clock)

    def put(self, key: str, description: str, done: int, total: int) -> None:
        """Show how far something is; bytes that were there at first are no speed."""
        shown = self._shown
        if key not in shown:
            task = self.add_task(description, total=total, completed=done, rate=None)
            shown[key] = (task, description, Rate(self._clock))
        task, before, rate = shown[key]
        if before != description:  # it is checked now, at another speed
            rate = Rate(self._clock)
            shown[key] = (task, description, rate)
        self.update(task, description=description, completed=done, total=total, rate=rate.add(done))

    def keep(self, keys: Collection[str]) -> None:
        """Remove all others."""
        for key in self._shown.keys() - set(keys):
            self.remove_task(self._shown.pop(key)[0])

    def get_renderables(self) -> Iterable[RenderableType]:
        width = max(1, self._screen.width - _ECHO)
        yield Constrain(self.make_tasks_table(self.tasks), width)
        if self.below:
            line = Text(self.below, style="yellow", no_wrap=True, overflow="ellipsis")
            yield Constrain(line, width)
