"""Which inputs are commands, and which are messages that only look like one."""

from __future__ import annotations


def as_message(line: str) -> str | None:
    """The message an input is, or ``None`` when it is a command.

    Only a single line that begins with one slash is a command: what was pasted with line breaks
    is text whatever it begins with, and ``//`` stands for a slash.
    """
    if line.startswith("//"):
        return line[1:]
    return None if line.startswith("/") and "\n" not in line else line


def as_line(message: str) -> str:
    """The input that is this message: the other way round."""
    return message if as_message(message) == message else "/" + message
