"""The process's three streams: stdout for data, stderr for everything else, stdin as bytes."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import BinaryIO, TextIO

from xverse_cli.answers import NO, YES, YES_OR_NO, understood
from xverse_cli.messages import text
from xverse_cli.render.sanitize import sanitize

QUIET = -1
MOST_INPUT = 2**20  # bytes, ten times what the longest context of the family holds


@dataclass
class Streams:
    """Where a run reads and writes, and how much it says on stderr.

    Args:
        stdin: ``None`` when there is none (closed, or a windowed program).
        verbosity: -1 quiet (errors only), 0 normal, 1 and more for ``-v``.
    """

    stdin: TextIO | None
    stdout: TextIO
    stderr: TextIO
    verbosity: int = 0

    def error(self, line: str) -> None:
        """Say ``line`` on stderr whatever the verbosity, without breaking its lines."""
        # A message must not raise where errors are being reported, so a lost stderr is passed over.
        with suppress(OSError, ValueError):
            print(sanitize(line), file=self.stderr, flush=True)

    def tell(self, line: str) -> None:
        """Say what was asked for on stderr, whatever the verbosity, broken between words."""
        self._remark(line, "none")

    def say(self, line: str, *, level: int = 0) -> None:
        """Remark on something from verbosity ``level`` on."""
        if self.verbosity >= level:
            self._remark(line, "dim")

    def warn(self, line: str) -> None:
        """Say what the user should not miss, unless asked to be quiet."""
        if self.verbosity > QUIET:
            self._remark(line, "yellow")

    def _remark(self, line: str, style: str) -> None:
        if not self.stderr_is_terminal:
            self.error(line)
            return
        from xverse_cli.render.remark import print_remark

        with suppress(OSError, ValueError):
            print_remark(sanitize(line), style, self.stderr)

    def choose(self, question: str, answers: Mapping[str, tuple[str, ...]], default: str) -> str:
        """Ask on stderr until the line that comes on standard input means one of ``answers``.

        Args:
            question: it shows the answers, and which one Enter stands for.
            answers: of each answer the words for it; "n" is taken where the input ends.
            default: what an empty line means.
        """
        while True:
            print(sanitize(question), end=" ", file=self.stderr, flush=True)
            line = self.stdin.readline() if self.stdin is not None else ""
            if not line:
                return NO
            answer = understood(line, answers)
            if answer is not None:
                return answer or default
            self.error(text("ask.again", answers=[*answers]))

    def confirm(self, question: str, *, default: bool = False) -> bool:
        """Ask for a yes or a no; ``default`` is what Enter means."""
        return self.choose(question, YES_OR_NO, YES if default else NO) == YES

    def write_data(self, data: str) -> None:
        """Write ``data`` to stdout at once, as UTF-8 and otherwise unaltered."""
        with naming_stdout():
            self.stdout.flush()
            self.stdout.buffer.write(data.encode("utf-8", "replace"))
            self.stdout.buffer.flush()

    @property
    def stdin_is_terminal(self) -> bool:
        return is_terminal(self.stdin)

    @property
    def stdout_is_terminal(self) -> bool:
        return is_terminal(self.stdout)

    @property
    def stdout_columns(self) -> int | None:
        """How wide the terminal is; ``None`` where stdout is none."""
        if not self.stdout_is_terminal:
            return None
        from xverse_cli.render.live import screen_size

        return screen_size(self.stdout)[0]

    @property
    def stderr_is_terminal(self) -> bool:
        return is_terminal(self.stderr)


def is_terminal(stream: TextIO | None) -> bool:
    """Whether ``stream`` is an open terminal."""
    return stream is not None and not stream.closed and stream.isatty()


def standard_streams() -> Streams:
    """The process's own streams, made unable to fail on a character.

    A pipe gets UTF-8 whatever the locale; a terminal keeps its own encoding, and what it cannot
    show is replaced.
    """
    for stream in (sys.stdout, sys.stderr):
        if stream is not None and hasattr(stream, "reconfigure"):
            encoding = stream.encoding if is_terminal(stream) else "utf-8"
            stream.reconfigure(encoding=encoding, errors="replace")
    # A reply that goes nowhere is lost, and that is an error; remarks may get lost.
    return Streams(sys.stdin, sys.stdout or _unwritable(), sys.stderr or _nowhere())


@contextmanager
def naming_stdout() -> Iterator[None]:
    """Makes an error of the system say that it was standard output that could not be written."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), text("output.stdout")) from None


def abandon_stdout(streams: Streams) -> None:
    """Point stdout nowhere: what is left in its buffer must not fail again when Python exits."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, streams.stdout.fileno())
        os.close(nowhere)


def _nowhere() -> TextIO:
    return open(os.devnull, "w", encoding="utf-8")


def _unwritable() -> TextIO:
    """Fails as a closed file descriptor does; it also keeps the descriptor from other files."""
    return os.fdopen(os.open(os.devnull, os.O_RDONLY), "w", encoding="utf-8")


def read_all(stream: TextIO) -> bytes:
    """What ``stream`` still holds, as bytes; at most one more than `MOST_INPUT`."""
    binary: BinaryIO = stream.buffer
    return binary.read(MOST_INPUT + 1)
