"""Every error that is raised anywhere has words, and its parameters are those of the words."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from string import Formatter

from xverse_cli.messages import en
from xverse_cli.models.download.remote import UnreachableError
from xverse_runtime import errors

ROOT = Path(__file__).parent.parent
ERROR_CLASSES = {
    name
    for name, value in vars(errors).items()
    if isinstance(value, type) and issubclass(value, errors.XverseError)
} | {UnreachableError.__name__}


def raised_errors(folder: Path) -> Iterator[tuple[str, frozenset[str], str]]:
    """(code, parameter names, where) of every construction of an error with a literal code."""
    for file in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
                continue
            if node.func.id in ERROR_CLASSES and node.args:
                (code,) = node.args
                assert isinstance(code, ast.Constant), f"{file}:{node.lineno}: code is no literal"
                names = frozenset(keyword.arg or "**" for keyword in node.keywords)
                yield str(code.value), names, f"{file.relative_to(ROOT)}:{node.lineno}"


RAISED = [*raised_errors(ROOT / "runtime"), *raised_errors(ROOT / "xverse_cli")]


def test_the_search_finds_the_errors() -> None:
    codes = {code for code, _, _ in RAISED}
    assert {"config.unsupported", "context.overflow", "path.outside"} <= codes
    assert len(codes) > 25


def test_a_code_has_the_same_parameters_everywhere() -> None:
    seen: dict[str, tuple[frozenset[str], str]] = {}
    for code, names, where in RAISED:
        first, first_where = seen.setdefault(code, (names, where))
        assert first == names, f"{code}: {first_where} and {where}"


def test_every_code_has_words_that_use_its_parameters() -> None:
    for code, names, where in RAISED:
        assert code in en.ERRORS, f"{where}: {code} has no entry in the catalogue"
        for part in en.ERRORS[code]:
            used = {field for _, field, _, _ in Formatter().parse(part) if field}
            assert used <= names, f"{code}: {sorted(used - names)} are not given at {where}"


def test_no_words_without_an_error() -> None:
    assert set(en.ERRORS) <= {code for code, _, _ in RAISED}
