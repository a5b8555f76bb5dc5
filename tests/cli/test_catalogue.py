"""The catalogue: nothing missing, nothing left over, placeholders that are filled."""

from __future__ import annotations

import ast
import importlib
import re
import string
from pathlib import Path

import pytest

from xverse_cli import messages
from xverse_cli.messages.en import ERRORS, TEXTS
from xverse_runtime.errors import XverseError

SOURCES = Path(messages.__file__).parents[1]
RUNTIME = SOURCES.parent / "runtime"  # codes that the command line words


def placeholders(template: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(template) if name}


def our_calls() -> list[ast.Call]:
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in SOURCES.rglob("*.py")]
    return [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Call)]


def called(call: ast.Call) -> str:
    return getattr(call.func, "id", None) or getattr(call.func, "attr", "")


def first_text(call: ast.Call) -> str | None:
    if call.args and isinstance(call.args[0], ast.Constant):
        value = call.args[0].value
        return value if isinstance(value, str) else None
    return None


def keywords(call: ast.Call) -> set[str]:
    return {keyword.arg for keyword in call.keywords if keyword.arg}


def test_every_text_asked_for_exists_and_gets_its_parameters() -> None:
    calls = [call for call in our_calls() if called(call) == "text" and first_text(call)]
    assert len(calls) > 50
    for call in calls:
        key = first_text(call)
        assert key in TEXTS
        assert placeholders(TEXTS[key]) == keywords(call), key


def test_every_error_raised_here_exists_and_gets_its_parameters() -> None:
    errors = [call for call in our_calls() if called(call).endswith("Error")]
    coded = [call for call in errors if re.fullmatch(r"[a-z_.]+", first_text(call) or "")]
    assert len(coded) >= 20
    for call in coded:
        code = first_text(call)
        assert code in ERRORS
        message, hint = ERRORS[code]
        assert placeholders(message) | placeholders(hint) <= keywords(call), code


def test_no_text_is_unused() -> None:
    """A key is used where it, or the f-string it is made by, stands in the source."""
    source = "\n".join(
        path.read_text(encoding="utf-8")
        for path in (*SOURCES.rglob("*.py"), *RUNTIME.rglob("*.py"))
        if path.parent.name != "messages" or path.name == "__init__.py"
    )
    made = [re.escape(key).replace("KEY", r"[a-z_]+") for key in re.findall(r'f"([^"]+)"', source)]
    patterns = [re.compile(re.sub(r"\\\{[^}]*\\\}", "[a-z_]+", pattern)) for pattern in made]
    unused = [
        key
        for key in TEXTS
        if f'"{key}"' not in source and not any(pattern.fullmatch(key) for pattern in patterns)
    ]
    assert unused == []


@pytest.mark.parametrize("code", ERRORS)
def test_errors_read_as_sentences(code: str) -> None:
    message, hint = ERRORS[code]
    assert message.endswith((".", "{detail}"))
    assert "  " not in message
    assert not hint.startswith(" ")


def test_unknown_codes_print_sanely() -> None:
    assert messages.error_text(XverseError("a.b", n=1)) == ("a.b (n=1)", "")


def test_missing_parameters_show_as_a_question_mark() -> None:
    assert messages.error_text(XverseError("path.missing"))[0] == "? is not there (?)."


def test_lists_are_shortened() -> None:
    error = XverseError("checkpoint.missing_shards", path="/m", names=[f"s{i}" for i in range(23)])
    assert ", s18, s19 and 3 more" in messages.error_text(error)[0]
    error = XverseError("checkpoint.mismatch", missing=[], surplus=["x"], misshaped=(), path="/m")
    assert "Missing: none. Surplus: x. Of another shape: none." in messages.error_text(error)[0]


def test_sizes() -> None:
    assert [messages.size(n) for n in (5, 2048, 3 * 2**20, 2**33)] == [
        "5 bytes",
        "2.0 KiB",
        "3.0 MiB",
        "8.0 GiB",
    ]


@pytest.mark.parametrize("language", messages.LANGUAGES)
def test_every_language_is_complete(language: str) -> None:
    """The same keys as English, and in each text the same placeholders."""
    other = importlib.import_module(f"xverse_cli.messages.{language}")
    assert other.TEXTS.keys() == TEXTS.keys()
    assert other.ERRORS.keys() == ERRORS.keys()
    for key, template in other.TEXTS.items():
        assert placeholders(template) == placeholders(TEXTS[key]), key
    for code, (message, hint) in other.ERRORS.items():
        known = placeholders(ERRORS[code][0]) | placeholders(ERRORS[code][1])
        assert placeholders(message) | placeholders(hint) == known, code


def test_every_catalogue_is_a_language() -> None:
    """A module with two letters for a name that nobody can choose would be forgotten."""
    folder = Path(messages.__file__).parent
    assert {path.stem for path in folder.glob("??.py")} == set(messages.LANGUAGES)


def test_unknown_languages_are_english() -> None:
    messages.use("xx")
    assert messages.text("command.exit") == "Leave."
