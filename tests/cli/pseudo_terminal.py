"""A real pseudo-terminal with a screen, to use the chat as a person would."""

from __future__ import annotations

import json
import os
import select
import signal
import struct
import subprocess
import sys
import time
from functools import partial
from typing import Any

import pyte

from tests.cli.conftest import FAKE_MAIN

TIMEOUT_S = 20.0


class PseudoTerminal:
    """Runs `xverse` with the scripted model on a terminal of its own.

    Args:
        script: see `fake_main`; ``None`` runs the real program.
        argv: its arguments.
        file_bytes: how large a file can get, as if the disk were full.
    """

    def __init__(
        self,
        script: dict[str, Any] | None,
        *argv: str,
        columns: int = 80,
        rows: int = 24,
        env: dict[str, str] | None = None,
        file_bytes: int | None = None,
    ) -> None:
        import fcntl
        import pty
        import termios

        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.screen = pyte.HistoryScreen(columns, rows, history=1000)
        self._stream = pyte.ByteStream(self.screen)
        self.output = b""
        head = ["-m", "xverse_cli"] if script is None else [str(FAKE_MAIN), json.dumps(script)]
        self.process = subprocess.Popen(
            [sys.executable, *head, *argv],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            preexec_fn=partial(_take_terminal, file_bytes),
            env={
                **os.environ,
                "TERM": "xterm-256color",
                "COLUMNS": str(columns),
                "LINES": str(rows),
                **(env or {}),
            },
        )
        os.close(slave)

    def __enter__(self) -> PseudoTerminal:
        return self

    def __exit__(self, *error: object) -> None:
        self.process.kill()
        self.process.wait()
        if self._master >= 0:
            os.close(self._master)

    def type(self, text: str) -> None:
        self.send(text.encode())

    def send(self, data: bytes) -> None:
        os.write(self._master, data)

    def wait_for(self, wanted: str, count: int = 1) -> None:
        """Read until ``wanted`` stands on the screen that many times."""
        end = time.monotonic() + TIMEOUT_S
        while self.text.count(wanted) < count:
            assert time.monotonic() < end, f"no {wanted!r} in:\n{self.text}"
            self._read(0.2)

    def wait_for_or_end(self, wanted: str, count: int = 1) -> bool:
        """Like `wait_for`; false when the program has ended before."""
        end = time.monotonic() + TIMEOUT_S
        while self.text.count(wanted) < count:
            assert time.monotonic() < end, f"no {wanted!r} in:\n{self.text}"
            self._read(0.05)
            if self.process.poll() is not None:
                self._read(0)
                return self.text.count(wanted) >= count
        return True

    def press_until(self, key: str, wanted: str) -> None:
        """Press a key, again if nothing comes of it, as a person does on a busy machine."""
        end = time.monotonic() + TIMEOUT_S
        while wanted not in self.text:
            assert time.monotonic() < end, f"no {wanted!r} in:\n{self.text}"
            self.type(key)
            self.wait_for_pause()

    def wait_for_pause(self) -> None:
        """Read until nothing new has come for a moment, as a person looks at the screen."""
        before = -1
        while before != len(self.output):
            before = len(self.output)
            self._read(0.3)

    def resize(self, columns: int, rows: int) -> None:
        """Change the size of the window, as a person does with the mouse."""
        import fcntl
        import termios

        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.resize_screen(columns, rows)
        self.process.send_signal(signal.SIGWINCH)

    def resize_screen(self, columns: int, rows: int) -> None:
        """What the terminal does with its screen then: cuts off what is too wide."""
        self.screen.resize(rows, columns)

    def hang_up(self) -> None:
        """Close the window."""
        os.close(self._master)
        self._master = -1

    def wait_for_end(self) -> int:
        end = time.monotonic() + TIMEOUT_S
        while self.process.poll() is None:
            assert time.monotonic() < end, f"still running:\n{self.text}"
            self._read(0.1)
        self._read(0)
        return self.process.returncode

    @property
    def marks_pastes(self) -> bool:
        """Whether the program has asked for bracketed paste last."""
        return self.output.rfind(b"\x1b[?2004h") > self.output.rfind(b"\x1b[?2004l")

    @property
    def text(self) -> str:
        """Everything to be seen, scrolled back to the start."""
        above = [
            "".join(line[i].data for i in range(self.screen.columns))
            for line in self.screen.history.top
        ]
        return "\n".join(line.rstrip() for line in [*above, *self.screen.display])

    def _read(self, patience: float) -> None:
        ready, _, _ = select.select([self._master], [], [], patience)
        if not ready:
            return
        try:
            data = os.read(self._master, 65536)
        except OSError:  # Linux: the other side is closed
            return
        self.output += data
        self._stream.feed(data)
        # prompt-toolkit asks where the cursor is and waits for the answer.
        for _ in range(data.count(b"\x1b[6n")):
            at = self.screen.cursor
            os.write(self._master, f"\x1b[{at.y + 1};{at.x + 1}R".encode())


def _take_terminal(file_bytes: int | None) -> None:
    """Make stdin the controlling terminal of the new session, so that Ctrl-C is a signal."""
    import fcntl
    import resource
    import termios

    if file_bytes is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
