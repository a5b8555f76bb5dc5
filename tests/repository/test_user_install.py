"""Users have no test dependencies: the program works without them, and without a word about it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

WITHOUT = ("numpy", "pytest", "setuptools")
PROGRAM = f"""
import sys
sys.modules.update(dict.fromkeys({WITHOUT!r}))  # None: importing it fails
from xverse_cli.main import main
main()
"""


def test_works_without_test_dependencies(golden: Path) -> None:
    options = ["--raw", "--max-tokens", "1", "--model", str(golden / "moe-safetensors")]
    command = [sys.executable, "-c", PROGRAM, "generate", *options, "Hello"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "Warning" not in result.stderr
