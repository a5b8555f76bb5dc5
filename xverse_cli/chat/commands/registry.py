"""What a slash command is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from xverse_cli.messages import text

if TYPE_CHECKING:
    from xverse_cli.chat.repl import Repl


@dataclass(frozen=True)
class SlashCommand:
    """A command; ``argument`` is the key of how its argument is written, if it takes one.

    Args:
        run: does it; gets the argument without spaces around it, perhaps empty.
        complete: what could be written for an argument.
    """

    name: str
    help: str
    run: Callable[[Repl, str], None]
    argument: str | None = None
    complete: Callable[[Repl], list[str]] | None = None
    takes_path: bool = False

    @property
    def usage(self) -> str:
        return f"{self.name} {text(self.argument)}" if self.argument else self.name
