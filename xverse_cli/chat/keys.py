"""The keys, by the names their descriptions have in the catalogue; bound in `key_bindings`."""

from __future__ import annotations

KEYS = (
    "enter",
    "newline",
    "interrupt",
    "leave",
    "history",
    "search",
    "suggestion",
    "complete",
    "editor",
)
