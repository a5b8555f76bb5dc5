"""Pastes: one message whatever they contain; a long one stands in the prompt as a placeholder."""

from __future__ import annotations

from bisect import bisect_right

from prompt_toolkit.formatted_text import StyleAndTextTuples
from prompt_toolkit.formatted_text.utils import fragment_list_to_text
from prompt_toolkit.layout.processors import Processor, Transformation, TransformationInput
from prompt_toolkit.layout.utils import explode_text_fragments

from xverse_cli.messages import text

# Of a paste that is shown as it is.
MOST_LINES = 20
MOST_CHARACTERS = 20 * 80
_FIRST, _LAST = 0xF0000, 0xFFFFD  # characters without a meaning: Private Use Plane 15


class Pastes:
    """Long pastes, each one character in the prompt: it is moved over and deleted as a whole."""

    def __init__(self) -> None:
        self._texts: dict[str, str] = {}

    def insert(self, pasted: str) -> str:
        """What goes into the prompt for ``pasted``, whose lines end by ``\\n``."""
        # A paste with such a character in it could be taken for a placeholder itself.
        is_plain = not any(chr(_FIRST) <= character <= chr(_LAST) for character in pasted)
        if is_plain and _lines(pasted) <= MOST_LINES and len(pasted) <= MOST_CHARACTERS:
            return pasted
        mark = chr(_FIRST + len(self._texts))
        self._texts[mark] = pasted
        return mark

    def expand(self, typed: str) -> str:
        """The text that is meant, with each placeholder's own in its place."""
        return "".join(self._texts.get(character, character) for character in typed)

    def label(self, character: str) -> str | None:
        """What is shown for a placeholder."""
        pasted = self._texts.get(character)
        if pasted is None:
            return None
        if _lines(pasted) > MOST_LINES:
            return text("paste.placeholder", lines=_lines(pasted))
        return text("paste.long_placeholder", count=len(pasted))


def _lines(pasted: str) -> int:
    return len(pasted.rstrip("\n").split("\n"))


class PlaceholderProcessor(Processor):
    """Shows the placeholders of ``pastes`` in a line of the prompt."""

    def __init__(self, pastes: Pastes) -> None:
        self._pastes = pastes

    def apply_transformation(self, transformation_input: TransformationInput) -> Transformation:
        fragments = transformation_input.fragments
        if not any(map(self._pastes.label, fragment_list_to_text(fragments))):
            return Transformation(fragments)
        shown: StyleAndTextTuples = []
        starts: list[int] = []  # where each character of the line begins on the screen
        width = 0
        for style, character, *_ in explode_text_fragments(fragments):
            starts.append(width)
            label = self._pastes.label(character)
            shown.append((f"{style} reverse", label) if label else (style, character))
            width += len(label or character)

        def to_display(position: int) -> int:
            beyond = position - len(starts)
            return width + beyond if beyond >= 0 else starts[position]

        def to_source(position: int) -> int:
            beyond = position - width
            return len(starts) + beyond if beyond >= 0 else bisect_right(starts, position) - 1

        return Transformation(shown, to_display, to_source)
