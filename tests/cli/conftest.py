"""Runs `xverse` inside the test, on streams of its own and with the scripted model."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import pytest

from tests.cli.fake_engine import FakeEngine
from xverse_cli import messages
from xverse_cli.app import build_app, run
from xverse_cli.host import Host
from xverse_cli.settings import Settings
from xverse_cli.streams import Streams

PASSED_ON = ("MODELSCOPE_DOMAIN", "LANG")  # what a fixture may have set for everyone
FAKE_MAIN = Path(__file__).with_name("fake_main.py")


# Options are worded when their modules are first imported: in English, whichever test is first.
build_app()


@pytest.fixture(autouse=True)
def english() -> Iterator[None]:
    """A test that ran a command in another language leaves none of it behind."""
    yield
    messages.use("en")


class FakeTerminal(io.TextIOWrapper):
    """A text stream in memory that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def memory_stream(data: bytes = b"", *, terminal: bool = False) -> TextIO:
    kind = FakeTerminal if terminal else io.TextIOWrapper
    return kind(io.BytesIO(data), encoding="utf-8")


def written(stream: TextIO) -> bytes:
    stream.flush()
    raw = stream.buffer
    assert isinstance(raw, io.BytesIO)
    return raw.getvalue()


@dataclass
class Result:
    """What a run left behind."""

    code: int
    stdout: bytes
    stderr: str
    engine: FakeEngine
    settings: Settings | None

    @property
    def json(self) -> Any:
        return json.loads(self.stdout)


Cli = Callable[..., Result]


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    """`cli("generate", "hi", stdin=b"…", engine=FakeEngine(…), env={…}, terminal="io")`.

    ``terminal`` names the streams that are terminals: i, o, e. The model is an empty directory
    unless the arguments or the environment name one.
    """
    model = tmp_path / "model"
    model.mkdir()

    def call(
        *argv: str,
        stdin: bytes | None = b"",
        engine: FakeEngine | None = None,
        env: dict[str, str] | None = None,
        terminal: str = "",
    ) -> Result:
        engine = engine or FakeEngine()
        seen: list[Settings] = []

        def load(found: object, settings: Settings, *_: object) -> FakeEngine:
            seen.append(settings)
            return engine

        streams = Streams(
            None if stdin is None else memory_stream(stdin, terminal="i" in terminal),
            memory_stream(terminal="o" in terminal),
            memory_stream(terminal="e" in terminal),
        )
        passed_on = {key: os.environ[key] for key in PASSED_ON if key in os.environ}
        environ = {"XVERSE_MODEL": str(model), **passed_on, **(env or {})}
        code = run(argv, Host(streams, environ, load))
        stderr = written(streams.stderr).decode()
        return Result(code, written(streams.stdout), stderr, engine, seen[0] if seen else None)

    return call


@dataclass
class Started:
    """A `xverse` process with the scripted model."""

    process: subprocess.Popen[bytes]

    def read_until(self, wanted: bytes) -> bytes:
        """Read stdout up to ``wanted``."""
        assert self.process.stdout is not None
        seen = b""
        while wanted not in seen:
            piece = os.read(self.process.stdout.fileno(), 1)
            assert piece, f"stdout ended after {seen!r}"
            seen += piece
        return seen

    def finish(self) -> tuple[bytes, str, int]:
        stdout, stderr = self.process.communicate(timeout=30)
        return stdout, stderr.decode(), self.process.returncode


Start = Callable[..., Started]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """`start({"token_s": 1}, "generate", "hi")`: a real process, its streams pipes."""
    running: list[subprocess.Popen[bytes]] = []

    def call(script: dict[str, Any], *argv: str, env: dict[str, str] | None = None) -> Started:
        process = subprocess.Popen(
            [sys.executable, str(FAKE_MAIN), json.dumps(script), *argv],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "XVERSE_MODEL": str(tmp_path), **(env or {})},
        )
        running.append(process)
        return Started(process)

    yield call
    for process in running:
        process.kill()
        process.communicate()
