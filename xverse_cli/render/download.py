"""Shows a download: bars on a terminal, a plain line now and then elsewhere, nothing when quiet."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Protocol

from xverse_cli.messages import size, text
from xverse_cli.streams import Streams

LINE_EVERY_S = 15.0
RATE_OVER_S = 10.0
MOST_BARS = 6


class FileStatus(Protocol):
    """How far one file is, in bytes."""

    @property
    def name(self) -> str: ...

    @property
    def size(self) -> int: ...

    @property
    def done(self) -> int: ...

    @property
    def hashed(self) -> int: ...


class Rate:
    """Bytes per second over the last seconds, so that a pause shows."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._seen: deque[tuple[float, int]] = deque()

    def add(self, done: int) -> float | None:
        """``done`` bytes so far; ``None`` until there is something to tell."""
        now = self._clock()
        self._seen.append((now, done))
        while len(self._seen) > 2 and now - self._seen[0][0] > RATE_OVER_S:
            self._seen.popleft()
        then, before = self._seen[0]
        return (done - before) / (now - then) if now - then > 0.5 else None


class DownloadDisplay:
    """A context manager around one download.

    Args:
        streams: the process's.
        clock: seconds.
    """

    def __init__(self, streams: Streams, clock: Callable[[], float] = time.monotonic) -> None:
        self._streams = streams
        self._clock = clock
        self._rate = Rate(clock)
        self._next_line = clock() + LINE_EVERY_S
        self._bars: Any = None
        self._tasks: dict[str, Any] = {}
        self._total: Any = None

    def __enter__(self) -> DownloadDisplay:
        if self._streams.stderr_is_terminal and self._streams.verbosity >= 0:
            self._bars = _bars(self._streams)
            if self._bars is not None:
                self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bars is not None:
            self._bars.stop()
            self._bars = None

    def say(self, line: str) -> None:
        """A remark, above the bars."""
        if self._bars is not None:
            self._bars.console.print(line, style="yellow")
        else:
            self._streams.warn(line)

    def show(self, statuses: Sequence[FileStatus]) -> None:
        done = sum(status.done for status in statuses)
        total = sum(status.size for status in statuses)
        rate = self._rate.add(done)
        if self._bars is not None:
            self._show_bars(statuses, done, total)
        elif self._clock() >= self._next_line and self._streams.verbosity >= 0:
            self._next_line = self._clock() + LINE_EVERY_S
            self._streams.say(_line(statuses, done, total, rate))

    def _show_bars(self, statuses: Sequence[FileStatus], done: int, total: int) -> None:
        bars = self._bars
        if self._total is None:
            self._total = bars.add_task(text("pull.bar_total"), total=total, completed=done)
        bars.update(self._total, completed=done, total=total)
        active = [one for one in statuses if one.hashed < one.size and (one.done or not one.size)]
        for status in active[:MOST_BARS]:
            task = self._tasks.get(status.name)
            if task is None:
                # bytes that were there before count as done, not as speed
                task = bars.add_task(status.name, total=status.size, completed=status.done)
                self._tasks[status.name] = task
            checking = status.done == status.size
            name = text("pull.bar_checking", name=status.name) if checking else status.name
            bars.update(
                task,
                completed=status.hashed if checking else status.done,
                description=name,
                visible=True,
            )
        for name in self._tasks.keys() - {status.name for status in active[:MOST_BARS]}:
            bars.remove_task(self._tasks.pop(name))


def _bars(streams: Streams) -> Any:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        ProgressColumn,
        Task,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.table import Column
    from rich.text import Text

    class RateColumn(ProgressColumn):
        """Bytes per second in the units of the sizes beside it."""

        def render(self, task: Task) -> Text:
            rate = task.finished_speed or task.speed
            return Text("" if rate is None else f"{size(rate)}/s", no_wrap=True)

    console = Console(file=streams.stderr, markup=False, emoji=False, highlight=False)
    if console.is_dumb_terminal:
        return None
    columns = (  # on a narrow terminal the bar gives way first, and no line is broken
        TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True)),
        BarColumn(bar_width=None, table_column=Column(ratio=1)),
        DownloadColumn(binary_units=True, table_column=Column(no_wrap=True)),
        RateColumn(table_column=Column(no_wrap=True)),
        TimeRemainingColumn(compact=True, table_column=Column(no_wrap=True)),
    )
    return Progress(*columns, console=console, transient=True, refresh_per_second=5, expand=True)


def _line(statuses: Sequence[FileStatus], done: int, total: int, rate: float | None) -> str:
    """One line for logs: what is there of all, how fast, how long still."""
    left = "?" if not rate else duration((total - done) / rate)
    finished = sum(status.hashed == status.size for status in statuses)
    return text(
        "pull.line",
        done_bytes=done,
        total_bytes=total,
        percent=f"{100 * done / total:.0f}" if total else "100",
        rate_bytes=rate or 0,
        left=left,
        files=f"{finished}/{len(statuses)}",
    )


def duration(seconds: float) -> str:
    """``1 h 02 min``, ``3 min``, ``20 s``."""
    whole = int(seconds)
    if whole < 60:
        return text("duration.seconds", seconds=whole)
    hours, minutes = divmod(whole // 60, 60)
    if hours:
        return text("duration.hours", hours=hours, minutes=f"{minutes:02}")
    return text("duration.minutes", minutes=minutes)
