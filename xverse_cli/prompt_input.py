"""Puts a prompt together from arguments, files and standard input."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from xverse_cli.messages import text
from xverse_cli.streams import MOST_INPUT, Streams, read_all
from xverse_runtime.errors import UsageError

STDIN = "-"
PATIENCE_S = 3.0


def assemble_prompt(arguments: Sequence[str], files: Sequence[str], streams: Streams) -> str:
    """The prompt: arguments, then files, then piped input, with a blank line between parts.

    ``-`` among the arguments says where standard input goes. A terminal is only read when asked
    for by ``-``. Parts without text are left out.

    Raises:
        UsageError: ``input.empty``, ``input.two_dashes``, ``input.unreadable``,
            ``input.too_large`` or ``input.not_utf8``.
    """
    if arguments.count(STDIN) > 1:
        raise UsageError("input.two_dashes")
    parts = [_argument(part) if part != STDIN else _read_stdin(streams) for part in arguments]
    parts += [read_file(name) for name in files]
    if STDIN not in arguments and not streams.stdin_is_terminal:
        parts.append(_read_stdin(streams))
    prompt = "\n\n".join(part for part in parts if part)
    if not prompt.strip():
        raise UsageError("input.empty")
    return prompt


def decode(data: bytes, source: str, start: int = 0) -> str:
    """UTF-8 text, without a byte order mark and the newline at its end.

    Args:
        start: where in its source ``data`` begins, for the message.

    Raises:
        UsageError: ``input.not_utf8``.
    """
    try:
        content = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError("input.not_utf8", source=source, offset=start + error.start) from None
    content = content.removeprefix("\ufeff")
    return content[:-2] if content.endswith("\r\n") else content.removesuffix("\n")


@contextmanager
def _reminder(streams: Streams) -> Iterator[None]:
    """Say what is being waited for: a pipe that nobody closes would look like a slow model."""
    timer = threading.Timer(PATIENCE_S, streams.say, [text("input.still_waiting")])
    timer.daemon = True
    if not streams.stdin_is_terminal:
        timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _argument(value: str) -> str:
    # Python keeps bytes it cannot decode as lone surrogates; they are no text.
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return decode(os.fsencode(value), text("input.prompt_part"))
    return value


def read_file(name: str) -> str:
    """The text of a file.

    Raises:
        UsageError: ``input.unreadable``, ``input.too_large`` or ``input.not_utf8``.
    """
    try:
        with Path(name).open("rb") as file:
            data = file.read(MOST_INPUT + 1)
        if len(data) > MOST_INPUT:
            raise UsageError("input.too_large", source=name, most_bytes=MOST_INPUT)
        return decode(data, name)
    except (OSError, ValueError) as error:
        detail = getattr(error, "strerror", None) or str(error)
        raise UsageError("input.unreadable", source=name, detail=detail) from None


def _read_stdin(streams: Streams) -> str:
    if streams.stdin is None or streams.stdin.closed:
        return ""
    source = text("input.stdin")
    if streams.stdin_is_terminal:
        streams.say(text("input.waiting"))
    try:
        with _reminder(streams):
            data = read_all(streams.stdin)
        if len(data) > MOST_INPUT:
            raise UsageError("input.too_large", source=source, most_bytes=MOST_INPUT)
        return decode(data, source)
    except OSError as error:
        detail = error.strerror or str(error)
        raise UsageError("input.unreadable", source=source, detail=detail) from None
