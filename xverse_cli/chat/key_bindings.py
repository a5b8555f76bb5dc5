"""What the keys of the prompt do, beside prompt-toolkit's own."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

from prompt_toolkit.document import Document
from prompt_toolkit.enums import DEFAULT_BUFFER
from prompt_toolkit.filters import has_focus
from prompt_toolkit.key_binding import KeyBindings
from prompt_toolkit.keys import Keys

from xverse_cli.chat.bursts import Burst
from xverse_cli.chat.clusters import bind_clusters
from xverse_cli.chat.slash import as_line

if TYPE_CHECKING:
    from xverse_cli.chat.pasting import Pastes

# What comes sooner than this after Enter was no person's next key.
_BURST_S = 0.015
# What was typed while a reply was written arrives at once too, when the prompt begins.
_TYPED_AHEAD_S = 0.1
_AFTER_BURST_S = 0.1


class ClearedInput(KeyboardInterrupt):
    """Ctrl-C, at a prompt that held text."""


class EnterKey:
    """Sends the message; in the middle of a paste that the terminal does not mark, breaks a line.

    Such a paste is told by its speed: Enter waits a moment for what may follow it.
    """

    def __init__(self) -> None:
        self.pastes_are_marked = False  # by this terminal, as has been seen
        self._began = 0.0
        self._last_break = 0.0
        self._waiting: Document | None = None  # what was there when Enter was pressed

    def begin(self) -> None:
        """A prompt begins."""
        self._began = time.monotonic()
        self._last_break = 0.0
        self._waiting = None

    def press(self, event: Any) -> None:
        buffer, now = event.current_buffer, time.monotonic()
        if self._waiting is not None:  # two within a moment: an empty line of a paste
            self._break(buffer, self._waiting)
        if self.pastes_are_marked or now - self._began < _TYPED_AHEAD_S:
            buffer.validate_and_handle()
        elif now - self._last_break < _AFTER_BURST_S:
            self._break(buffer, buffer.document)
        else:
            self._waiting = pressed = buffer.document
            asyncio.get_running_loop().call_later(_BURST_S, self._decide, event.app, pressed)

    def _decide(self, app: Any, pressed: Document) -> None:
        buffer = app.current_buffer
        if self._waiting is not pressed or not app.is_running:
            return
        if buffer.text != pressed.text:  # something has followed
            self._break(buffer, pressed)
        else:
            buffer.validate_and_handle()

    def _break(self, buffer: Any, at: Document) -> None:
        self._waiting = None
        position = at.cursor_position
        moved = buffer.cursor_position + (buffer.cursor_position >= position)
        text = f"{buffer.text[:position]}\n{buffer.text[position:]}"
        buffer.document = Document(text, moved)
        self._last_break = time.monotonic()


def key_bindings(pastes: Pastes, enter: EnterKey) -> KeyBindings:
    """Enter, new lines, pastes, Ctrl-C and the editor."""
    keys = KeyBindings()
    # While the history is searched, the keys are the search's.
    at_prompt = has_focus(DEFAULT_BUFFER)

    bind_clusters(keys, at_prompt)

    @keys.add("enter", filter=at_prompt)
    def _send(event: Any) -> None:
        enter.press(event)

    @keys.add("escape", "enter", filter=at_prompt)
    @keys.add("c-j", filter=at_prompt)
    def _new_line(event: Any) -> None:
        event.current_buffer.newline(copy_margin=False)

    @keys.add(Keys.BracketedPaste, filter=at_prompt)
    def _paste(event: Any) -> None:
        if isinstance(event.data, Burst):
            event.current_buffer.insert_text(event.data)
            return
        enter.pastes_are_marked = True
        buffer, pasted = event.current_buffer, event.data.replace("\r\n", "\n").replace("\r", "\n")
        # What is pasted is text: the user sees the second slash, and can take it away.
        escape = "" if buffer.cursor_position or as_line(pasted) == pasted else "/"
        buffer.insert_text(escape + pastes.insert(pasted))

    @keys.add("c-c", filter=at_prompt)
    def _interrupt(event: Any) -> None:
        buffer = event.current_buffer
        if buffer.text:
            buffer.append_to_history()  # the arrow up brings it back
            event.app.exit(exception=ClearedInput(), style="class:aborting")
        else:
            event.app.exit(exception=KeyboardInterrupt(), style="class:aborting")

    @keys.add("c-x", "c-e", filter=at_prompt)
    def _edit(event: Any) -> None:
        buffer = event.current_buffer
        buffer.text = pastes.expand(buffer.text)
        buffer.open_in_editor()

    return keys
