"""The cursor moves over what readers see as one character: an emoji, a letter with its marks."""

from __future__ import annotations

from typing import Any

from prompt_toolkit.application import get_app
from prompt_toolkit.filters import Condition, emacs_insert_mode, has_selection, vi_insert_mode
from prompt_toolkit.filters.base import Filter
from prompt_toolkit.key_binding import KeyBindings
from wcwidth import iter_graphemes


def last_cluster(text: str) -> int:
    """How many code points the last character of ``text`` has."""
    return len([*iter_graphemes(text)][-1]) if text else 0


def first_cluster(text: str) -> int:
    """How many code points the first character of ``text`` has."""
    return len(next(iter_graphemes(text), ""))


@Condition
def _suggested() -> bool:
    """Right takes the suggestion then."""
    buffer = get_app().current_buffer
    return bool(buffer.suggestion and buffer.suggestion.text) and (
        buffer.document.is_cursor_at_the_end
    )


def bind_clusters(keys: KeyBindings, at_prompt: Filter) -> None:
    """Bind the keys that move over a character or delete one."""
    typing = at_prompt & (emacs_insert_mode | vi_insert_mode) & ~has_selection

    @keys.add("left", filter=typing)
    @keys.add("c-b", filter=typing & emacs_insert_mode)
    def _left(event: Any) -> None:
        buffer = event.current_buffer
        buffer.cursor_position -= last_cluster(buffer.document.current_line_before_cursor)

    @keys.add("right", filter=typing & ~_suggested)
    @keys.add("c-f", filter=typing & emacs_insert_mode & ~_suggested)
    def _right(event: Any) -> None:
        buffer = event.current_buffer
        buffer.cursor_position += first_cluster(buffer.document.current_line_after_cursor)

    @keys.add("backspace", filter=typing)
    def _backspace(event: Any) -> None:
        buffer = event.current_buffer
        buffer.save_to_undo_stack()
        # at the beginning of a line this is the line break before it
        buffer.delete_before_cursor(last_cluster(buffer.document.current_line_before_cursor) or 1)

    @keys.add("delete", filter=typing)
    def _delete(event: Any) -> None:
        buffer = event.current_buffer
        buffer.save_to_undo_stack()
        buffer.delete(first_cluster(buffer.document.current_line_after_cursor) or 1)
