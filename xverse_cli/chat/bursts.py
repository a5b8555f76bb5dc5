"""Text that comes faster than anybody types: what came at once goes into the prompt at once.

A terminal that does not mark its pastes sends them as keys. prompt-toolkit looks up the binding of
each, for a third of a millisecond: twelve seconds for a long file. The line breaks of such a paste
stay keys, which `EnterKey` understands.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

from prompt_toolkit.filters import emacs_insert_mode, vi_insert_mode
from prompt_toolkit.key_binding.key_processor import KeyPress
from prompt_toolkit.keys import Keys

_FEWEST = 8  # characters at once that are no person's keys
_LINE_BREAKS = (Keys.ControlM, Keys.ControlJ)


class Burst(str):
    """The text of a burst, as a key that is handled like a paste."""

    __slots__ = ()


def gather_bursts(app: Any) -> None:
    """Have the application of a prompt do so."""
    processor = app.key_processor
    feed = processor.feed_multiple

    def feed_gathered(keys: Sequence[KeyPress], first: bool = False) -> None:
        feed([*_gathered(keys)] if _is_text(keys) and _inserts(processor) else keys, first)

    processor.feed_multiple = feed_gathered


def _is_text(keys: Sequence[KeyPress]) -> bool:
    """Whether there is nothing among them but text and line breaks."""
    return len(keys) >= _FEWEST and all(_is_character(one) or _breaks(one) for one in keys)


def _inserts(processor: Any) -> bool:
    """Whether a character is inserted as it is: it is no command, and belongs to none."""
    pending = processor.input_queue or processor.key_buffer or processor.arg
    return not pending and bool(emacs_insert_mode() or vi_insert_mode())


def _gathered(keys: Sequence[KeyPress]) -> Iterator[KeyPress]:
    for is_text, run in groupby(keys, _is_character):
        pressed = [*run]
        if is_text and len(pressed) >= _FEWEST:
            yield KeyPress(Keys.BracketedPaste, Burst("".join(one.data for one in pressed)))
        else:
            yield from pressed


def _is_character(pressed: KeyPress) -> bool:
    return not isinstance(pressed.key, Keys) and pressed.data == pressed.key


def _breaks(pressed: KeyPress) -> bool:
    return pressed.key in _LINE_BREAKS
