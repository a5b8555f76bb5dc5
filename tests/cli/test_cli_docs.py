"""docs/cli.md and docs/chat.md say what the code says."""

from __future__ import annotations

from pathlib import Path

from xverse_cli import exit_codes
from xverse_cli.chat.commands import COMMANDS, key_rows
from xverse_cli.reference import update


def test_the_tables_are_current(repository: Path) -> None:
    document = (repository / "docs" / "cli.md").read_text(encoding="utf-8")
    assert update(document) == document, "run: python -m xverse_cli.reference docs/cli.md"
    assert document.count("<!-- begin ") == 16
    codes = [value for name, value in vars(exit_codes).items() if isinstance(value, int)]
    assert all(f"\n| {code} | " in document for code in codes)


def test_the_tables_of_the_chat_are_current(repository: Path) -> None:
    document = (repository / "docs" / "chat.md").read_text(encoding="utf-8")
    assert update(document) == document, "run: python -m xverse_cli.reference docs/chat.md"
    assert document.count("<!-- begin ") == 2
    assert all(f"\n| `{command.usage}` | " in document for command in COMMANDS)
    assert all(f"\n| {key} | " in document for key, _ in key_rows())
