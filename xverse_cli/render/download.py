"""Shows a download: bars on a terminal, a plain line now and then elsewhere, nothing when quiet."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol

from xverse_cli.messages import text
from xverse_cli.streams import Streams

LINE_EVERY_S = 15.0
RATE_OVER_S = 10.0
STALLED_S = 3.0  # without a byte, after which the display says so
MOST_BARS = 6


class FileStatus(Protocol):
    """How far one file is, in bytes. ``waiting``: why nothing comes, and seconds to the next
    try."""

    @property
    def name(self) -> str: ...

    @property
    def size(self) -> int: ...

    @property
    def done(self) -> int: ...

    @property
    def hashed(self) -> int: ...

    @property
    def waiting(self) -> tuple[str, float] | None: ...


@dataclass(frozen=True)
class Rest:
    """What belongs to a download beside the files that are shown: bytes and number, all of them
    and those that are done."""

    done_bytes: int = 0
    bytes: int = 0
    done_files: int = 0
    files: int = 0


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


class Stall:
    """Notices that nothing has come for a while."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._most, self._since = -1, clock()

    def line(self, statuses: Sequence[FileStatus]) -> str:
        """Since when nothing moves, or when the next try is; empty while something does."""
        moved = sum(status.done + status.hashed for status in statuses)
        if moved != self._most:
            self._most, self._since = moved, self._clock()
        seconds = self._clock() - self._since
        if seconds < STALLED_S:
            return ""
        waits = [status.waiting for status in statuses if status.waiting is not None]
        if not waits:
            return text("pull.stalled", seconds=f"{seconds:.0f}")
        reason, left = min(waits, key=lambda wait: wait[1])
        return text("pull.stalled_retry", reason=reason, seconds=f"{max(0.0, left):.0f}")


class DownloadDisplay:
    """A context manager around one download.

    Args:
        streams: the process's.
        clock: seconds.
        rest: what the download consists of beside the files that `show` is told of.
    """

    def __init__(
        self,
        streams: Streams,
        clock: Callable[[], float] = time.monotonic,
        rest: Rest | None = None,
    ) -> None:
        self._streams = streams
        self._clock = clock
        self._rest = rest or Rest()
        self._rate = Rate(clock)
        self._stall = Stall(clock)
        self._next_line = clock() + LINE_EVERY_S
        self._bars: Any = None

    def __enter__(self) -> DownloadDisplay:
        if self._streams.stderr_is_terminal and self._streams.verbosity >= 0:
            from xverse_cli.render.bars import Bars

            self._bars = Bars.on(self._streams.stderr, self._clock)
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

    @property
    def has_bars(self) -> bool:
        """Whether there are bars, and below them when the next try is."""
        return self._bars is not None

    def say(self, line: str) -> None:
        """A remark, above the bars."""
        if self._bars is not None:
            self._bars.console.print(line, style="yellow")
        else:
            self._streams.warn(line)

    def show(self, statuses: Sequence[FileStatus]) -> None:
        done = self._rest.done_bytes + sum(status.done for status in statuses)
        total = self._rest.bytes + sum(status.size for status in statuses)
        rate = self._rate.add(done)
        if self._bars is not None:
            self._bars.below = self._stall.line(statuses)
            self._show_bars(statuses, done, total)
        elif self._clock() >= self._next_line and self._streams.verbosity >= 0:
            self._next_line = self._clock() + LINE_EVERY_S
            self._streams.say(self._line(statuses, done, total, rate))

    def _show_bars(self, statuses: Sequence[FileStatus], done: int, total: int) -> None:
        bars = self._bars
        if len(statuses) > 1 or self._rest.files:  # one file is its own total
            bars.put("", text("pull.bar_total"), done, total)
        active = [one for one in statuses if one.hashed < one.size and (one.done or not one.size)]
        for status in active[:MOST_BARS]:
            checking = status.done == status.size
            name = text("pull.bar_checking", name=status.name) if checking else status.name
            bars.put(status.name, name, status.hashed if checking else status.done, status.size)
        bars.keep({"", *(status.name for status in active[:MOST_BARS])})

    def _line(
        self, statuses: Sequence[FileStatus], done: int, total: int, rate: float | None
    ) -> str:
        """One line for logs: what is there of all, how fast, how long still."""
        left = "?" if not rate else duration((total - done) / rate)
        finished = sum(status.hashed == status.size for status in statuses)
        finished, files = finished + self._rest.done_files, len(statuses) + self._rest.files
        return text(
            "pull.line",
            done_bytes=done,
            total_bytes=total,
            percent=f"{100 * done / total:.0f}" if total else "100",
            rate_bytes=rate or 0,
            left=left,
            files=f"{finished}/{files}",
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
