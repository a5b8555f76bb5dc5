"""The demo model through the real program: what a newcomer does first."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cli.pseudo_terminal import PseudoTerminal


@pytest.fixture
def program_env(repository: Path) -> dict[str, str]:
    folders = (repository, repository / "runtime", repository / "kernels")
    return {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, folders))}


def xverse(*argv: str, stdin: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "xverse_cli", *argv],
        input=stdin,
        capture_output=True,
        encoding="utf-8",
        timeout=60,
        env=env,
    )


def test_generate_as_in_the_readme(program_env: dict[str, str]) -> None:
    argv = ("generate", "--model", "demo", "What is this?", "--json")
    done = xverse(*argv, stdin="mixture\n", env=program_env)
    assert (done.returncode, done.stderr) == (0, "")
    value = json.loads(done.stdout)
    assert value["model"]
    assert value["text"].strip()
    assert value["finish_reason"] == "stop"


def test_a_conversation_in_two_languages(program_env: dict[str, str]) -> None:
    argv = ("chat", "--model", "demo", "--temperature", "0")
    done = xverse(*argv, stdin="What is xverse?\n什么是混合专家模型？\n", env=program_env)
    assert (done.returncode, done.stderr) == (0, "")
    assert "xverse" in done.stdout.lower()
    assert "专家" in done.stdout


@pytest.mark.skipif(os.name == "nt", reason="POSIX terminals")
def test_the_first_minute(program_env: dict[str, str]) -> None:
    started = time.monotonic()
    with PseudoTerminal(
        None, "chat", "--model", "demo", "--temperature", "0", env=program_env
    ) as terminal:
        terminal.wait_for("demo model")
        terminal.wait_for("\n>")
        assert time.monotonic() - started < 15  # far from the 2 s it takes, for loaded machines
        terminal.type("什么是混合专家模型？\r")
        terminal.wait_for("专家", count=3)
        terminal.type("\x04")
        assert terminal.wait_for_end() == 0
