"""Real processes: signals, closed pipes, full disks, odd locales."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cli.conftest import FAKE_MAIN, Start

pytestmark = pytest.mark.skipif(os.name == "nt", reason="POSIX signals and shells")

SLOW = {"replies": ["abcdefghij" * 50], "token_s": 0.05}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_keeps_the_partial_reply(start: Start, number: signal.Signals) -> None:
    started = start(SLOW, "generate", "hi")
    seen = started.read_until(b"abc")
    started.process.send_signal(number)
    rest, stderr, code = started.finish()
    assert code == 130
    assert (seen + rest).startswith(b"abc")
    assert (seen + rest).endswith(b"\n")
    assert len(seen + rest) < 100
    assert stderr == ""


def test_an_interrupted_json_object(start: Start) -> None:
    started = start({**SLOW, "prefill_s": 0.0}, "generate", "hi", "--json", "-v")
    assert started.process.stderr is not None
    while b"imaginary" not in started.process.stderr.readline():  # loaded
        pass
    time.sleep(0.5)  # until the handler stands, Ctrl-C ends the program without an object
    started.process.send_signal(signal.SIGINT)
    stdout, _, code = started.finish()
    value = json.loads(stdout)
    assert code == 130
    assert value["finish_reason"] == "interrupted"
    assert "abcdefghij".startswith(value["text"][:10])


def test_a_second_signal_kills(start: Start) -> None:
    started = start({**SLOW, "deaf": True}, "generate", "hi")
    started.read_until(b"ab")
    started.process.send_signal(signal.SIGINT)
    started.read_until(b"ef")  # the engine goes on
    started.process.send_signal(signal.SIGINT)
    _, _, code = started.finish()
    assert code == -signal.SIGINT


def test_signals_that_are_switched_off_stay_off(start: Start) -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        started = start({"replies": ["abcdefgh"], "token_s": 0.05}, "generate", "hi")
        started.read_until(b"ab")
        started.process.send_signal(signal.SIGINT)
        rest, _, code = started.finish()
    finally:
        signal.signal(signal.SIGINT, before)
    assert (rest, code) == (b"cdefgh\n", 0)


def test_a_closed_pipe_ends_quietly(start: Start) -> None:
    started = start(
        {"replies": ["line\n" * 700], "token_s": 0.001}, "generate", "hi", "--max-tokens", "9999"
    )
    started.read_until(b"line\n")
    assert started.process.stdout is not None
    started.process.stdout.close()
    assert started.process.stderr is not None
    assert started.process.stderr.read() == b""
    assert started.process.wait(30) == 0


def test_a_closed_pipe_with_help(tmp_path: Path) -> None:
    command = [sys.executable, str(FAKE_MAIN), "{}", "generate", "--help"]
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, timeout=30)
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")


def test_messages_are_utf8_too(start: Start) -> None:
    _, stderr, code = start({}, "chat", "--model", "./没有", env={"LC_ALL": "C"}).finish()
    assert code == 3
    assert "没有" in stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk(tmp_path: Path) -> None:
    command = [sys.executable, str(FAKE_MAIN), "{}", "generate", "hi", "--model", str(tmp_path)]
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=full, stderr=subprocess.PIPE, timeout=30
        )
    assert done.returncode == 5
    assert done.stderr == b"error: No space left on device: standard output\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["convert", "--help"]])
def test_a_full_disk_and_help(arguments: list[str]) -> None:
    command = [sys.executable, str(FAKE_MAIN), "{}", *arguments]
    with open("/dev/full", "wb") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, timeout=30)
    assert (done.returncode, done.stderr) == (
        5,
        b"error: No space left on device: standard output\n",
    )


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_closed_stdout_is_an_error(tmp_path: Path, options: list[str]) -> None:
    """Unlike a pipe that somebody has stopped reading: nobody ever got the reply."""
    program = [sys.executable, str(FAKE_MAIN), "{}", "generate", "hi", "--model", str(tmp_path)]
    command = ["sh", "-c", '"$@" >&-', "sh", *program, *options]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, timeout=30)
    assert (done.returncode, done.stderr) == (
        1,
        b"error: Bad file descriptor: standard output\n",
    )


@pytest.mark.parametrize(
    "env",
    [
        {"LANG": "C", "LC_ALL": "C"},
        {"PYTHONIOENCODING": "latin-1"},
        {"PYTHONUTF8": "0", "LC_ALL": "POSIX", "PYTHONCOERCECLOCALE": "0"},
    ],
)
def test_utf8_whatever_the_locale(start: Start, env: dict[str, str]) -> None:
    started = start({"replies": ["混合专家 🎉"]}, "generate", "什么是？", env=env)
    assert started.finish() == ("混合专家 🎉\n".encode(), "", 0)


def test_a_closed_stdin(tmp_path: Path) -> None:
    program = [sys.executable, str(FAKE_MAIN), "{}", "generate", "hi", "--model", str(tmp_path)]
    command = ["sh", "-c", '"$@" <&-', "sh", *program]
    done = subprocess.run(command, capture_output=True, timeout=30)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"Hello there.\n", b"")


def test_a_pipe_that_nobody_closes_is_explained(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, str(FAKE_MAIN), "{}", "generate", "hi", "--model", str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with process:
        assert process.stderr is not None
        assert process.stderr.readline().startswith(b"Still waiting for standard input")
        stdout, _ = process.communicate(b"", timeout=30)
    assert stdout == b"Hello there.\n"
