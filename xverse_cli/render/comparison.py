"""A table and a bar chart: drawn by Rich on a terminal, plain in a pipe."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from xverse_cli.render.columns import padded, widest
from xverse_cli.render.sanitize import sanitize

if TYPE_CHECKING:
    from xverse_cli.streams import Streams

LONGEST_BAR = 40
Bars = Sequence[tuple[str, float]]


def print_comparison(
    heading: Sequence[str],
    rows: Sequence[tuple[str, ...]],
    bars: Bars,
    footing: Sequence[str],
    streams: Streams,
) -> None:
    """Print on stdout.

    Args:
        heading: lines before the table.
        rows: of the table; the first holds the headings, the first column names.
        bars: names, and values of at least 0.
        footing: lines after the chart.
        streams: of the run.
    """
    if streams.stdout_is_terminal:
        _print_rich(heading, rows, bars, footing, streams)
        return
    table = _plain_table(rows)
    lines = [*map(sanitize, heading), "", *table, "", *_plain_chart(bars), "", *footing]
    streams.write_data("".join(f"{line}\n" for line in lines))


def _plain_table(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Names to the left, figures to the right."""
    widths = [widest(column) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            padded(cell, width, right=place >= 2)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _bar_lengths(bars: Bars) -> list[float]:
    most = max(value for _, value in bars)
    return [value / most * LONGEST_BAR if most else 0.0 for _, value in bars]


def _plain_chart(bars: Bars) -> list[str]:
    width = widest(name for name, _ in bars)
    return [
        f"{padded(name, width)}  {'#' * max(1, round(length))} {value:.1f}"
        for (name, value), length in zip(bars, _bar_lengths(bars), strict=True)
    ]


def _print_rich(
    heading: Sequence[str],
    rows: Sequence[tuple[str, ...]],
    bars: Bars,
    footing: Sequence[str],
    streams: Streams,
) -> None:
    from rich.bar import Bar
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(file=streams.stdout, markup=False, emoji=False, highlight=False)
    for line in heading:
        console.print(Text(sanitize(line)))
    table = Table(box=None, pad_edge=False, header_style="bold")
    for place, title in enumerate(rows[0]):
        table.add_column(title, justify="left" if place < 2 else "right")
    for number, row in enumerate(rows[1:]):
        table.add_row(*row, style="green" if number == 0 else "")
    console.print()
    console.print(table)
    chart = Table.grid(padding=(0, 2))
    most = max(value for _, value in bars) or 1.0
    for number, (name, value) in enumerate(bars):
        color = "green" if number == 0 else "blue"
        chart.add_row(name, Bar(most, 0, value, width=LONGEST_BAR, color=color), f"{value:.1f}")
    console.print()
    console.print(chart)
    console.print()
    for line in footing:
        console.print(Text(line, style="dim"))
