"""Runs the commands shown in README.md and writes their real output below them.

A marked block of README.md, where ``(exit N)`` and a status other than 0 go together:

    <!-- output: xverse --version -->
    <!-- end -->

`output` is checked by the tests; `sample` is for output with timings, which is only renewed.

Usage: readme_examples.py [--check] [FILE]
"""

from __future__ import annotations

import argparse
import difflib
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(
    r"<!-- (?P<kind>output|sample)(?: \(exit (?P<status>\d+)\))?: (?P<command>.+?) -->\n"
    r".*?<!-- end -->",
    re.DOTALL,
)
WIDTH = "88"


def run(command: str, expected_status: int) -> str:
    """What a terminal of `WIDTH` columns shows, with the home directory as ``~``.

    Messages on stderr are left out unless the command is meant to fail: they name timings.
    """
    with tempfile.TemporaryDirectory() as home:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("XVERSE_", "HF_", "XDG_"))}
        programs = f"{Path(sys.executable).parent}{os.pathsep}{kept['PATH']}"
        settings = {"HOME": home, "PATH": programs, "COLUMNS": WIDTH, "HF_HUB_OFFLINE": "1"}
        result = subprocess.run(
            ["sh", "-c", command],
            cwd=ROOT,
            env={**kept, **settings, "NO_COLOR": "1", "LC_ALL": "C.UTF-8"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
        )
        if result.returncode != expected_status:
            raise SystemExit(f"{command}: exit status {result.returncode}\n{result.stderr}")
        shown = result.stdout + (result.stderr if expected_status else "")
        return shown.replace(home, "~").rstrip()


def renew(match: re.Match[str]) -> str:
    """The block with the present output of its command."""
    marker = match.string[match.start() : match.end("command")] + " -->"
    command = match["command"]
    output = run(command, int(match["status"] or 0))
    return f"{marker}\n```console\n$ {command}\n{output}\n```\n<!-- end -->"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("file", nargs="?", type=Path, default=ROOT / "README.md")
    parser.add_argument("--check", action="store_true", help="change nothing; show differences")
    arguments = parser.parse_args()
    text = arguments.file.read_text(encoding="utf-8")
    if not arguments.check:
        arguments.file.write_text(BLOCK.sub(renew, text), encoding="utf-8")
        return 0
    stale = 0
    for match in BLOCK.finditer(text):
        if match["kind"] == "output" and (now := renew(match)) != match.group():
            stale += 1
            lines = difflib.unified_diff(
                match.group().splitlines(), now.splitlines(), "shown", "now", lineterm=""
            )
            print(*lines, sep="\n")
    if stale:
        print(f"{arguments.file.name}: {stale} outputs are not current. Renew them: make docs")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
