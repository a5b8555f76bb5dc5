"""Keeps what is typed while no prompt is there out of the output, and for the next prompt."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from xverse_cli.streams import Streams


@contextmanager
def quiet_typing(streams: Streams) -> Iterator[None]:
    """Switch echo and line editing off, where there is a POSIX terminal.

    The keys then wait as they were pressed: Enter as a carriage return, Ctrl-D as itself, both
    of which the next prompt understands. Ctrl-C stays a signal.
    """
    termios = _termios()
    stdin = streams.stdin
    if termios is None or stdin is None or not streams.stdin_is_terminal:
        yield
        return
    try:
        before = termios.tcgetattr(stdin.fileno())
    except (termios.error, OSError, ValueError):
        yield
        return
    during = [*before]
    during[0] &= ~termios.ICRNL
    during[3] &= ~(termios.ECHO | termios.ICANON | termios.IEXTEN)
    termios.tcsetattr(stdin.fileno(), termios.TCSANOW, during)
    try:
        yield
    finally:
        termios.tcsetattr(stdin.fileno(), termios.TCSANOW, before)


def _termios() -> Any:
    try:
        return importlib.import_module("termios")
    except ImportError:  # not a POSIX system
        return None
