"""Tables of figures, as Markdown files."""

from __future__ import annotations

from pathlib import Path


class Report:
    """Sections with tables, printed as they grow and written at the end."""

    def __init__(self, name: str, folder: Path, lines: list[str]) -> None:
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
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.write_text("\n".join(self._lines) + "\n", encoding="utf-8")
        return self._path

    def _add(self, *lines: str) -> None:
        self._lines += lines
        print(*lines, sep="\n", flush=True)
