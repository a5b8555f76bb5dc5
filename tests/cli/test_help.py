"""`--help`: complete, cheap, and free of heavy imports."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import Cli
from xverse_cli.settings import DEFAULT_MODEL

HEAVY = {
    "torch",
    "rich",
    "transformers",
    "pydantic",
    "huggingface_hub",
    "jinja2",
    "prompt_toolkit",
    "tokenizers",
    "numpy",
    "markdown_it",
    "pygments",
    "wcwidth",
}
LEVELS = [["--help"], ["generate", "--help"], ["chat", "-h"], [], ["--version"]]


def python(code: str, repository: Path, env: dict[str, str] | None = None) -> str:
    paths = [str(repository), str(repository / "runtime"), str(repository / "kernels")]
    return subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {paths}\n{code}"],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **(env or {})},
    ).stdout


@pytest.mark.parametrize("arguments", LEVELS, ids=" ".join)
def test_help_imports_nothing_heavy(arguments: list[str], repository: Path) -> None:
    code = f"from xverse_cli.app import run\nassert run({arguments}) == 0\nprint(*sys.modules)"
    imported = python(code, repository).splitlines()[-1].split()
    assert {name.split(".")[0] for name in imported} & HEAVY == set()


def test_help_is_cheap(repository: Path, tmp_path: Path) -> None:
    """Under 120 ms of CPU time once bytecode is there; the best run, as others load the machine."""
    code = (
        "import atexit, sys, time\n"
        "atexit.register(lambda: print(time.process_time()))\n"
        "from xverse_cli.main import main\n"
        "sys.argv[1:] = ['generate', '--help']\nmain()"
    )
    cached = {"PYTHONPYCACHEPREFIX": str(tmp_path), "PYTHONDONTWRITEBYTECODE": ""}
    runs = (float(python(code, repository, cached).split()[-1]) for _ in range(12))
    assert any(seconds < 0.120 for seconds in runs)


def test_without_a_command_there_is_help(capsys: pytest.CaptureFixture[str], cli: Cli) -> None:
    assert cli().code == 0
    assert "Usage: xverse" in capsys.readouterr().out


def test_the_list_of_commands_fits_80_columns(repository: Path) -> None:
    code = "from xverse_cli.app import run\nrun(['--help'])"
    shown = python(code, repository, {"COLUMNS": "80"})
    commands = shown.partition("Commands:\n")[2].partition("\n\n")[0].splitlines()
    assert len(commands) >= 5
    for line in commands:
        assert line.endswith(".")
        assert not line.endswith("...")
        assert len(line) <= 80


def test_help_lists_every_setting(capsys: pytest.CaptureFixture[str], cli: Cli) -> None:
    from xverse_cli.settings import CHAT_ALONE, SETTINGS

    for command in ("generate", "chat"):
        assert cli(command, "--help").code == 0
        shown = capsys.readouterr().out
        for key in SETTINGS:
            wanted = command == "chat" or key not in CHAT_ALONE
            assert ("--" + key.replace("_", "-") in shown) == wanted


def test_version(capsys: pytest.CaptureFixture[str], cli: Cli) -> None:
    assert cli("--version").code == 0
    assert capsys.readouterr().out.startswith("xverse 0")


@pytest.mark.parametrize("command", ["chat", "generate", "doctor", "bench"])
def test_help_names_the_default_model(
    cli: Cli, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli(command, "--help").code == 0
    page = " ".join(capsys.readouterr().out.split())
    assert f"[default: {DEFAULT_MODEL}]" in page
