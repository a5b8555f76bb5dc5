"""The looks of a reply: Rich's styles as numbers of escape sequences, and which signs to draw.

Rich decides on colours (`NO_COLOR`, `FORCE_COLOR`, what the terminal can); a look that is put
inside another one is written after it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

STYLES = {
    "h1": "bold underline bright_magenta",
    "h2": "bold bright_magenta",
    "h3": "bold bright_cyan",
    "h4": "bold",
    "h5": "bold",
    "h6": "bold dim",
    "strong": "bold",
    "em": "italic",
    "s": "strike dim",
    "code": "cyan",
    "link": "underline blue",
    "target": "dim",
    "maths": "yellow",
    "marker": "bright_magenta",
    "quote": "dim",
    "quoted": "italic",
    "rule": "dim",
    "label": "dim italic",
    "frame": "dim",
    "th": "bold",
    "waiting": "dim",
}


@dataclass(frozen=True)
class Signs:
    """What is drawn beside the text."""

    bullets: tuple[str, ...] = ("•", "◦", "▪")
    open_task: str = "☐"
    done_task: str = "☑"
    bar: str = "│"
    line: str = "─"
    crossings: str = "┼"


PLAIN_SIGNS = Signs(("*", "-", "+"), "[ ]", "[x]", "|", "-", "+")


@dataclass(frozen=True)
class Theme:
    """How a reply looks.

    Args:
        looks: numbers of the escape sequence for each name of `STYLES`; empty without styles.
        links: the terminal shows hyperlinks.
        tokens: numbers by Pygments token type, filled as they are met.
    """

    looks: Mapping[str, str] = field(default_factory=dict)
    signs: Signs = Signs()
    links: bool = False
    console: Any = None
    code_theme: str = "ansi_dark"
    tokens: dict[Any, str] = field(default_factory=dict)

    @property
    def styled(self) -> bool:
        return bool(self.looks)

    def look(self, name: str) -> str:
        return self.looks.get(name, "")

    def token(self, kind: Any) -> str:
        """The look of a Pygments token type."""
        look = self.tokens.get(kind)
        if look is None:
            from pygments.token import Error
            from rich.syntax import Syntax

            if kind is Error:  # code need not be right, or of the language that it claims
                kind = Error.parent
            style = Syntax.get_theme(self.code_theme).get_style_for_token(kind)
            look = self.tokens[kind] = _numbers(style, self.console)
        return look


def theme_of(console: Console, *, links: bool, light: bool = False) -> Theme:
    """The theme for a console: no looks where it has no colours, plain signs where it must."""
    from rich.style import Style

    looks: dict[str, str] = {}
    if console.color_system is not None:
        looks = {name: _numbers(Style.parse(what), console) for name, what in STYLES.items()}
    unicode = console.encoding.lower().replace("-", "").startswith("utf")
    return Theme(
        looks,
        Signs() if unicode else PLAIN_SIGNS,
        links and bool(looks),
        console,
        "ansi_light" if light else "ansi_dark",
    )


def joined(outer: str, inner: str) -> str:
    """The look ``inner`` inside ``outer``."""
    return f"{outer};{inner}" if outer and inner else outer or inner


def _numbers(style: Any, console: Any) -> str:
    """The numbers of the escape sequence that begins ``style``."""
    if console is None or console.color_system is None:
        return ""
    if console.no_color:
        style = style.without_color
    from rich.console import COLOR_SYSTEMS

    rendered = style.render("x", color_system=COLOR_SYSTEMS[console.color_system])
    return rendered[2 : rendered.index("m")] if rendered.startswith("\x1b[") else ""
