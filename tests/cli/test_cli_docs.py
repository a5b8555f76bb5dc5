"""docs/cli.md says what the code says."""

from __future__ import annotations

from pathlib import Path

from xverse_cli import exit_codes
from xverse_cli.reference import update


def test_the_tables_are_current(repository: Path) -> None:
    document = (repository / "docs" / "cli.md").read_text(encoding="utf-8")
    assert update(document) == document, "run: python -m xverse_cli.reference docs/cli.md"
    assert document.count("<!-- begin ") == 15
    codes = [value for name, value in vars(exit_codes).items() if isinstance(value, int)]
    assert all(f"\n| {code} | " in document for code in codes)
