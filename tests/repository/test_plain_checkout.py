"""What a GPU machine that fetches nothing has is enough for its tests and measurements."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

MISSING = [
    "huggingface_hub",
    "hypothesis",
    "markdown_it",
    "platformdirs",
    "prompt_toolkit",
    "pyte",
    "pytest_timeout",
    "rich",
    "sentencepiece",
    "tokenizers",
    "typer",
    "urllib3",
    "wcwidth",
]


def run(repository: Path, code: str) -> str:
    """The output of a program, where nothing can be imported that may be missing."""
    hide = f"import sys; sys.modules.update(dict.fromkeys({MISSING}))"
    paths = (".", "runtime", "kernels")
    environment = {
        **os.environ,
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "PYTHONPATH": os.pathsep.join(str(repository / one) for one in paths),
    }
    command = [sys.executable, "-c", f"{hide}; {code}"]
    result = subprocess.run(
        command, cwd=repository, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.mark.slow
def test_the_gpu_tests_are_found_and_measurements_begin(repository: Path) -> None:
    pytest.importorskip("triton")
    options = ["-m", "gpu", "tests/gpu", "--collect-only", "-q", "-rs", "-p", "no:cacheprovider"]
    said = run(repository, f"import pytest; sys.exit(pytest.main({options}))")
    found = set(re.findall(r"^tests/gpu/(test_\w+)", said, re.MULTILINE))
    reads_text = set(re.findall(r"^SKIPPED .* tests/gpu/(test_\w+)", said, re.MULTILINE))
    assert reads_text == {"test_engine", "test_compiling"}
    every = {path.stem for path in (repository / "tests" / "gpu").glob("test_*.py")}
    assert found == every - reads_text
    run(repository, "import bench.gpu.__main__ as command; command.arguments_parser()")
