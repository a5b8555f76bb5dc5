"""Files that go with the next message."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from xverse_cli.prompt_input import read_file


@dataclass(frozen=True)
class Attachment:
    """The text of a file, under the name it was given by."""

    name: str
    content: str

    @property
    def message(self) -> str:
        """How the model sees it."""
        return f"{Path(self.name).name}:\n\n{self.content}"


@dataclass
class Attachments:
    """Those that wait for a message."""

    files: list[Attachment] = field(default_factory=list)

    def before(self, message: str) -> str:
        """``message`` after the texts of all files."""
        return "\n\n".join([*(file.message for file in self.files), message])

    def clear(self) -> None:
        self.files.clear()


def read_attachment(name: str) -> Attachment:
    """Read a text file; raises what `read_file` raises."""
    return Attachment(name, read_file(os.path.expanduser(name)))
