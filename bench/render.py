"""What rendering a reply costs, beside two usual ways of doing it with Rich.

    python -m bench.render

One text, three renderers, a simulated model and clock: as many tokens come between two frames as a
model of that speed gives in a thirtieth of a second. Measured is the processor time of the process
and what is written to the terminal; that terminal (pyte) is then searched for paragraphs that stand
there more than once.

- live: Rich's `Live` with the whole reply as `Markdown`, rendered anew for each frame.
- window: the whole reply rendered anew for each frame, all but the last lines printed once above,
  the last lines in a `Live`.
"""

from __future__ import annotations

import io
import platform
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.markdown import Markdown
from rich.text import Text

from bench.table import Report
from tests.render.gallery import gallery_theme, replies
from tests.render.terminal import Terminal
from xverse_cli.render.markdown.display import Display

COLUMNS, ROWS = 100, 40
FRAMES_A_S = 30
SPEEDS = (30, 100, 250)  # tokens a second
SHORT, LONG = 2000, 20000  # tokens
WINDOW = 6  # lines

_TOKEN = re.compile(r"\s?[A-Za-z]{1,6}|\s?\d{1,3}|[\u4e00-\u9fff]{1,2}|\s+|.", re.DOTALL)


def tokens(count: int) -> list[str]:
    """A long reply in pieces like a tokenizer's: the gallery again and again, numbered."""
    found: list[str] = []
    number = 0
    while len(found) < count:
        for text in replies().values():
            number += 1
            found += _TOKEN.findall(f"Part {number} of the reply begins here.\n\n{text}\n\n")
    return found[:count]


def frames(pieces: list[str], speed: int) -> Iterator[str]:
    """What comes between two frames."""
    due, waiting = 0.0, ""
    for piece in pieces:
        waiting += piece
        due += FRAMES_A_S / speed
        if due >= 1:
            due = max(0.0, due - 1) if speed > FRAMES_A_S else 0.0
            yield waiting
            waiting = ""
    if waiting:
        yield waiting


def ours(parts: Iterator[str], write: Callable[[str], None]) -> None:
    display = Display(gallery_theme(), lambda: (COLUMNS, ROWS))
    for part in parts:
        write(display.frame(part))
    write(display.close())


def live(parts: Iterator[str], write: Callable[[str], None]) -> None:
    console = _console(write)
    text = ""
    with Live(console=console, auto_refresh=False, vertical_overflow="visible") as display:
        for part in parts:
            text += part
            display.update(Markdown(text), refresh=True)


def window(parts: Iterator[str], write: Callable[[str], None]) -> None:
    console = _console(write)
    text, printed, lines = "", 0, list[str]()
    with Live(console=console, auto_refresh=False) as display:
        for part in parts:
            text += part
            target = io.StringIO()
            whole = Console(file=target, force_terminal=True, width=COLUMNS)
            whole.print(Markdown(text))
            lines = target.getvalue().splitlines()
            stable = max(printed, len(lines) - WINDOW)
            if stable > printed:
                display.console.print(Text.from_ansi("\n".join(lines[printed:stable])))
                printed = stable
            display.update(Text.from_ansi("\n".join(lines[printed:])), refresh=True)


def _console(write: Callable[[str], None]) -> Console:
    class Out(io.StringIO):
        def write(self, text: str) -> int:
            write(text)
            return len(text)

    return Console(file=Out(), force_terminal=True, width=COLUMNS, height=ROWS)


RENDERERS = {"xverse": ours, "Rich, live": live, "Rich, window": window}


def measure(name: str, pieces: list[str], speed: int) -> tuple[list[float], float, int]:
    """Milliseconds a token in each fifth, bytes a byte of text, and doubled paragraphs."""
    written: list[str] = []
    marks: list[float] = []
    seen = 0

    def parts() -> Iterator[str]:
        nonlocal seen
        for part in frames(pieces, speed):
            yield part
            seen += len(part)
            while len(marks) < 5 and seen >= total * (len(marks) + 1) / 5:
                marks.append(time.process_time())

    total = len("".join(pieces))
    began = time.process_time()
    RENDERERS[name](parts(), written.append)
    while len(marks) < 5:
        marks.append(time.process_time())
    fifth = len(pieces) / 5
    cost = [
        (end - start) * 1000 / fifth for start, end in zip([began, *marks[:-1]], marks, strict=True)
    ]
    output = "".join(written)
    size = len(output.encode()) / len("".join(pieces).encode())
    return cost, size, doubled(output)


def doubled(output: str) -> int:
    """How many of the numbered beginnings stand on the terminal once too often."""
    terminal = Terminal(COLUMNS, ROWS)
    terminal.write(output)
    found = Counter(re.findall(r"Part \d+ of the reply begins here", terminal.text))
    return sum(count - 1 for count in found.values())


def main() -> None:
    for name in RENDERERS:
        measure(name, tokens(200), 100)  # imports and lexers
    processor = platform.processor() or platform.machine()
    report = Report(
        "rendering",
        Path(__file__).parent / "results",
        [
            f"`python -m bench.render`, one core ({processor}), Python {platform.python_version()},"
            f" Rich {version('rich')}, {COLUMNS} × {ROWS} columns and rows,"
            f" {FRAMES_A_S} frames a second at most.",
            "Processor time in milliseconds a token, in the first and the last fifth of the reply;"
            " bytes written for a byte of text; numbered paragraphs that stand in the scrollback"
            " once too often.",
        ],
    )
    columns = [
        "renderer",
        "tokens",
        "tokens/s",
        "first fifth",
        "last fifth",
        "mean",
        "bytes",
        "doubled",
    ]
    report.table("The same reply", columns)
    for name in RENDERERS:
        _row(report, name, SHORT, 100)
    report.table("A long one", columns)
    for speed in SPEEDS:
        _row(report, "xverse", LONG, speed)
    report.write()


def _row(report: Report, name: str, count: int, speed: int) -> None:
    cost, size, twice = measure(name, tokens(count), speed)
    mean = sum(cost) / len(cost)
    report.row(
        name,
        str(count),
        str(speed),
        f"{cost[0]:.3f}",
        f"{cost[-1]:.3f}",
        f"{mean:.3f}",
        f"{size:.1f}",
        str(twice),
    )


if __name__ == "__main__":
    main()
