"""Files that people read: links lead somewhere, versions agree, records have their parts."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
RECORDS = sorted((ROOT / "docs" / "decisions").glob("*.md"))
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
SKIPPED = {".git", ".venv", "build", "dist", "__pycache__"}
# Written with classes so that the pattern does not match its own text.
PERSONAL_PATH = re.compile(r"[/](?:home|Users|root)[/]|[A-Z]:[\\]Users[\\]")
LINK = re.compile(r"\]\(([^)\s]+)\)")


def text_files() -> list[Path]:
    found = []
    for path in sorted(ROOT.rglob("*")):
        parts = path.relative_to(ROOT).parts
        hidden_cache = any(part.endswith(("_cache", ".egg-info")) for part in parts)
        if path.is_file() and not SKIPPED.intersection(parts) and not hidden_cache:
            data = path.read_bytes()
            if b"\0" not in data[:8192]:
                found.append(path)
    return found


def anchors(markdown: str) -> set[str]:
    """The anchors GitHub gives to headings."""
    headings = re.findall(r"^#+ +(.+?)\s*$", markdown, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_no_personal_paths() -> None:
    hits = []
    for path in text_files():
        text = path.read_text(encoding="utf-8", errors="replace")
        hits += [f"{path.relative_to(ROOT)}: {m.group()}" for m in PERSONAL_PATH.finditer(text)]
    assert hits == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    broken = []
    for target in LINK.findall(text):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = path.parent / name if name else path
        if not file.exists() or (
            anchor and anchor not in anchors(file.read_text(encoding="utf-8"))
        ):
            broken.append(target)
    assert broken == []


@pytest.mark.parametrize("record", RECORDS, ids=lambda path: path.stem)
def test_decision_record_has_its_parts(record: Path) -> None:
    text = record.read_text(encoding="utf-8")
    number = record.name[:4]
    assert re.match(rf"# {number}\. \S", text)
    assert re.search(r"^Status: (proposed|accepted|superseded by \d{4})$", text, re.MULTILINE)
    headings = re.findall(r"^## (.+)$", text, re.MULTILINE)
    assert headings == ["Context", "Decision", "Consequences"]


def test_decision_records_are_numbered_without_gaps() -> None:
    assert [path.name[:4] for path in RECORDS] == [f"{n + 1:04}" for n in range(len(RECORDS))]


def test_versions_agree() -> None:
    with (ROOT / "pyproject.toml").open("rb") as file:
        version = tomllib.load(file)["project"]["version"]
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    newest = re.search(r"^## \[([^\]]+)\]", changelog, re.MULTILINE)
    assert newest is not None
    assert newest.group(1) == version
    command = [sys.executable, "-m", "xverse_cli", "--version"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert version in shown.split()


def test_constraints_pin_every_requirement() -> None:
    with (ROOT / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)["project"]
    wanted = project["dependencies"] + project["optional-dependencies"]["test"]
    names = {re.split(r"[^A-Za-z0-9._-]", requirement)[0] for requirement in wanted}
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    pinned = set(re.findall(r"^([A-Za-z0-9._-]+)==", pins, re.MULTILINE))
    assert names <= pinned


def test_installed_packages_are_the_pinned_ones() -> None:
    """What the tests run with is what users get: an unpinned dependency would drift."""
    from importlib import metadata

    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    pinned = {name.lower() for name in re.findall(r"^([A-Za-z0-9._-]+)==", pins, re.MULTILINE)}
    needed, queue = set(), ["xverse-cli"]
    while queue:
        for requirement in metadata.requires(queue.pop()) or []:
            name = re.split(r"[^A-Za-z0-9._-]", requirement)[0].lower().replace("_", "-")
            if "extra ==" in requirement or name in needed:
                continue
            try:
                metadata.distribution(name)
            except metadata.PackageNotFoundError:
                continue  # for another platform or Python
            needed.add(name)
            queue.append(name)
    assert needed - pinned == set()
