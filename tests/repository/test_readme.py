"""The outputs shown in the README are what the commands print."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from xverse_cli.messages import figure
from xverse_runtime.config import ModelConfig
from xverse_runtime.memory_plan import Wishes, plan_memory
from xverse_runtime.offload.machines import find_machine
from xverse_runtime.store.synthetic import A4_2B

pytestmark = pytest.mark.skipif(os.name == "nt", reason="the README's commands are for a shell")


def readme_examples(repository: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(repository / "tools" / "readme_examples.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True)


def test_shown_outputs_are_current(repository: Path) -> None:
    result = readme_examples(repository, "--check")
    assert result.returncode == 0, result.stdout + result.stderr


def test_stale_output_is_found_and_renewed(repository: Path, tmp_path: Path) -> None:
    document = tmp_path / "document.md"
    block = "<!-- output{}: {} -->\n```console\nold\n```\n<!-- end -->\n"
    document.write_text(
        block.format("", "echo \\\n    new")
        + "between\n"
        + block.format(" (exit 3)", "echo no >&2; exit 3")
    )
    stale = readme_examples(repository, "--check", str(document))
    assert stale.returncode == 1
    assert "2 outputs are not current" in stale.stdout
    assert readme_examples(repository, str(document)).returncode == 0
    text = document.read_text()
    assert "$ echo \\\n    new\nnew\n```\n<!-- end -->\nbetween\n" in text
    assert "$ echo no >&2; exit 3\nno\n```" in text
    assert readme_examples(repository, "--check", str(document)).returncode == 0


def test_unexpected_status_is_an_error(repository: Path, tmp_path: Path) -> None:
    document = tmp_path / "document.md"
    document.write_text("<!-- output: exit 4 -->\n<!-- end -->\n")
    result = readme_examples(repository, str(document))
    assert result.returncode == 1
    assert "exit status 4" in result.stderr


def test_what_a_laptop_can_expect_is_what_doctor_predicts(repository: Path) -> None:
    readme = (repository / "README.md").read_text(encoding="utf-8")
    rows = re.findall(
        r"^\| \[.*\]\((\S+\.toml)\) \| ([\d.]+) \| ([\d.]+) s \|$", readme, re.MULTILINE
    )
    assert len(rows) == 4
    config = ModelConfig.from_dict(A4_2B)
    for place, rate, first in rows:
        machine = find_machine(str(repository / place))
        plan = plan_memory(config, machine, Wishes(precision="int4", context=4096))
        predicted = (plan.prediction.tokens_per_s, plan.prediction.first_token_s)
        assert (rate, first) == (figure(predicted[0], 2), figure(predicted[1], 2)), place
