"""Tables of figures, as Markdown files."""

from __future__ import annotations

from pathlib import Path

UNFINISHED = "Unfinished: what comes next was not measured."


class Report:
    """Sections with tables, printed as they grow and written at the end."""

    def __init__(
        self, name: str, folder: Path, lines: list[str], *, keeps_parts: bool = False
    ) -> None:
        """``keeps_parts``: also written with every line, so that an error later loses none;
        until `write` the file says that it is unfinished."""
        self._keeps_parts = keeps_parts
        self._path = folder / f"{name}.md"
        self._lines = [f"# {name}", "", *lines]

    def say(self, line: str) -> None:
        """A line of text."""
        self._add("", line)

    def table(self, title: str, columns: list[str]) -> None:
        """Begin a table."""
        self._add("", f"## {title}", "", " | ".join(columns), " | ".join("---" for _ in columns))

    def row(self, *cells: str) -> None:
        """A row of the table begun last."""
        self._add(" | ".join(cells))

    def write(self) -> Path:
        """Write the file and return where it is."""
        return self._write()

    def _write(self, *more: str) -> Path:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.write_text("\n".join([*self._lines, *more]) + "\n", encoding="utf-8")
        return self._path

    def _add(self, *lines: str) -> None:
        self._lines += lines
        if self._keeps_parts:
            self._write("", UNFINISHED)
        print(*lines, sep="\n", flush=True)
