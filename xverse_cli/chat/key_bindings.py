"""What the keys of the prompt do, beside prompt-toolkit's own."""

from __future__ import annotations

import select
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from prompt_toolkit.key_binding import KeyBindings
from prompt_toolkit.keys import Keys

if TYPE_CHECKING:
    from xverse_cli.chat.pasting import Pastes

# A person is slower than this between two keys; a terminal that pastes is faster.
_BURST_S = 0.01
# What was typed while a reply was written arrives at once too, when the prompt begins.
_TYPED_AHEAD_S = 0.1
_AFTER_BURST_S = 0.1


class ClearedInput(KeyboardInterrupt):
    """Ctrl-C, at a prompt that held text."""


class Bursts:
    """Tells the line breaks of a paste from Enter, where the terminal does not mark pastes."""

    def __init__(self) -> None:
        self.marked = False  # this terminal marks its pastes
        self._began = 0.0
        self._last = 0.0

    def begin(self) -> None:
        """A prompt begins."""
        self._began = time.monotonic()
        self._last = 0.0

    def holds(self, event: Any) -> bool:
        """Whether the Enter of ``event`` came in the middle, or at the end, of a burst."""
        now = time.monotonic()
        if self.marked or now - self._began < _TYPED_AHEAD_S:
            return False
        if event.app.key_processor.input_queue or _readable(event.app.input):
            self._last = now
            return True
        return now - self._last < _AFTER_BURST_S


def _readable(source: Any) -> bool:
    """Whether more is there to be read, within the time in which a paste goes on."""
    with suppress(OSError, ValueError, NotImplementedError):
        return bool(select.select([source.fileno()], [], [], _BURST_S)[0])
    return False


def key_bindings(pastes: Pastes, bursts: Bursts) -> KeyBindings:
    """Enter, new lines, pastes, Ctrl-C and the editor."""
    keys = KeyBindings()

    @keys.add("enter")
    def _send(event: Any) -> None:
        if bursts.holds(event):
            event.current_buffer.newline(copy_margin=False)
        else:
            event.current_buffer.validate_and_handle()

    @keys.add("escape", "enter")
    @keys.add("c-j")
    def _new_line(event: Any) -> None:
        event.current_buffer.newline(copy_margin=False)

    @keys.add(Keys.BracketedPaste)
    def _paste(event: Any) -> None:
        bursts.marked = True
        event.current_buffer.insert_text(pastes.insert(event.data))

    @keys.add("c-c")
    def _interrupt(event: Any) -> None:
        buffer = event.current_buffer
        if buffer.text:
            buffer.append_to_history()  # the arrow up brings it back
            event.app.exit(exception=ClearedInput(), style="class:aborting")
        else:
            event.app.exit(exception=KeyboardInterrupt(), style="class:aborting")

    @keys.add("c-x", "c-e")
    def _edit(event: Any) -> None:
        buffer = event.current_buffer
        buffer.text = pastes.expand(buffer.text)
        buffer.open_in_editor()

    return keys
