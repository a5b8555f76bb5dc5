"""The gallery: replies as models write them, and how they look.

``python -m tests.render.gallery`` renews the golden screens and the pictures in docs/img/. Look at
both before keeping them.
"""

from __future__ import annotations

import io
from pathlib import Path

from tests.render.picture import svg
from tests.render.terminal import Terminal
from xverse_cli.render.markdown.display import Display
from xverse_cli.render.markdown.stream import MarkdownStream
from xverse_cli.render.markdown.theme import Theme, theme_of

HERE = Path(__file__).resolve().parent / "gallery"
PICTURES = HERE.parents[2] / "docs" / "img"
COLUMNS = (40, 120)
ENVIRONMENT = {"TERM": "xterm-256color", "COLORTERM": "truecolor"}


def replies() -> dict[str, str]:
    """The texts by name."""
    return {path.stem: path.read_text("utf-8") for path in sorted(HERE.glob("*.md"))}


def gallery_theme() -> Theme:
    """The looks of a terminal with colours and hyperlinks."""
    from rich.console import Console

    stream = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    console = Console(file=stream, force_terminal=True, _environ=ENVIRONMENT)
    return theme_of(console, links=True)


def screen(text: str, columns: int, piece: int = 5) -> list[str]:
    """The lines of a terminal after a reply that came in pieces."""
    terminal = Terminal(columns, 30)
    display = Display(gallery_theme(), lambda: (columns, 30))
    for at in range(0, len(text), piece):
        terminal.write(display.frame(text[at : at + piece]))
    terminal.write(display.close())
    return terminal.lines


def picture(text: str, columns: int) -> str:
    """The same as an SVG."""
    stream = MarkdownStream(gallery_theme(), columns, 1000)
    return svg([*stream.feed(text), *stream.finish()], columns)


def golden(name: str, columns: int) -> Path:
    """The file that holds how a reply looks."""
    return HERE / f"{name}-{columns}.txt"


def main() -> None:
    PICTURES.mkdir(parents=True, exist_ok=True)
    for name, text in replies().items():
        for columns in COLUMNS:
            lines = "\n".join(screen(text, columns)) + "\n"
            golden(name, columns).write_text(lines, "utf-8")
            (PICTURES / f"{name}-{columns}.svg").write_text(picture(text, columns), "utf-8")


if __name__ == "__main__":
    main()
