"""The demo model that comes with the package: tiny, trained on questions about this project."""

from __future__ import annotations

from pathlib import Path


def demo_directory() -> Path:
    """Directory of the demo checkpoint, in the published layout."""
    return Path(__file__).resolve().parent
