"""The Chinese catalogue beside the English one: complete, and written as Chinese is."""

from __future__ import annotations

import ast
import re
import string
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import typer

from xverse_cli import messages
from xverse_cli.app import build_app
from xverse_cli.messages import en, zh
from xverse_cli.messages.details import _pattern, reworded
from xverse_cli.messages.zh_details import DETAILS, SYSTEM
from xverse_runtime.errors import XverseError

FOLDER = Path(messages.__file__).parent
ROOT = FOLDER.parents[1]
HAN = "\u4e00-\u9fff"
WIDE = "，。、；：？！（）“”《》"

# The same in every language: names, units, signs.
SAME = {
    "version",
    "error.system",
    "list.separator",
    "list.path",
    "rm.path",
    "show.mlp",
    "show.billion",
    "show.million",
    "fit.gpu",
    "template.other_reason",
    "help.heading",
    "usage.bad_value",
    "doctor.gpu",
    "doctor.rate",
    "simulate.policy_lru",
    "simulate.policy_lfu",
    "simulate.way_cpu",
    "simulate.part_gpu",
    "simulate.part_cpu",
    "chat.prompt",
    "chat.turn_named",
    "toolbar.placement",
    "stats.model",
    "show.message",
    "command.number_argument",
    "command.copy_argument",
    "keys.enter",
    "keys.newline",
    "keys.interrupt",
    "keys.leave",
    "keys.history",
    "keys.search",
    "keys.suggestion",
    "keys.complete",
    "keys.editor",
}
# Words of two texts that are put together: they begin or end in the middle of a sentence.
PARTS = {"list.separator", "list.more", "statistics.hit_rate"}
# Their parameters are Chinese themselves, so no space stands beside them.
CHINESE_PARAMETERS = {"expected", "slots", "problem"}
# A text may leave a parameter out for a reason.
OMITTED: dict[str, set[str]] = {}


def tables(module: str) -> dict[str, set[str]]:
    """The keys of the tables of a module of the catalogue."""
    contents = vars(import_module(f"xverse_cli.messages.{module}"))
    return {k: set(v) for k, v in contents.items() if k.endswith(("TEXTS", "ERRORS"))}


def both() -> Iterator[tuple[str, str, str]]:
    """(key, English, Chinese) of every text, of messages and of hints."""
    for key in en.TEXTS.keys() & zh.TEXTS.keys():
        yield key, en.TEXTS[key], zh.TEXTS[key]
    for code in en.ERRORS.keys() & zh.ERRORS.keys():
        yield from zip((code, code), en.ERRORS[code], zh.ERRORS[code], strict=True)


PAIRS = sorted(both())


def parameters(template: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(template) if name}


def test_the_languages_have_the_same_keys() -> None:
    assert zh.TEXTS.keys() == en.TEXTS.keys()
    assert zh.ERRORS.keys() == en.ERRORS.keys()


def test_the_languages_have_the_same_files() -> None:
    english = {path.stem.removeprefix("en") for path in FOLDER.glob("en*.py")}
    chinese = {path.stem.removeprefix("zh") for path in FOLDER.glob("zh*.py")}
    assert english | {"_details"} == chinese
    for name in english:
        first, second = (tables(f"{language}{name}") for language in ("en", "zh"))
        assert first.keys() == second.keys()
        for table in first:
            assert first[table] == second[table], (name, table)


def test_parameters_are_the_same() -> None:
    for key, english, chinese in PAIRS:
        omitted = OMITTED.get(key, set())
        assert parameters(chinese) == parameters(english) - omitted, key


def test_nothing_is_left_in_english() -> None:
    for key, english, chinese in PAIRS:
        assert bool(english) == bool(chinese), key
        if chinese not in ("", "{detail}"):
            assert bool(re.search(f"[{HAN}]", chinese)) == (key not in SAME), key


def test_punctuation() -> None:
    for key, _, chinese in PAIRS:
        assert not re.search(rf"[{HAN}][,;:?!.(]|[),;:?!][{HAN}]", chinese), key
        assert not re.search(rf"\S +[{WIDE}]|[{WIDE}] ", chinese), key
        for opening, closing in ("（）", "“”", "《》"):
            assert chinese.count(opening) == chinese.count(closing), key
        assert not re.search(r"[，。、；：？！]{2}", chinese), key
        if key not in PARTS and chinese:
            assert chinese[0] not in "，。、；：？！）”》", key
            assert chinese[-1] not in "，、（“《", key


def test_a_space_between_han_and_latin() -> None:
    for key, _, chinese in PAIRS:
        shown = re.sub(rf"\{{({'|'.join(CHINESE_PARAMETERS)})\}}", "一", chinese)
        assert not re.search(rf"[{HAN}][A-Za-z0-9{{]|[A-Za-z0-9}}%][{HAN}]", shown), key


def test_what_is_to_be_typed_is_not_translated() -> None:
    commands = "|".join(build_command().commands)
    typed = rf"--[a-z][a-z-]+|XVERSE_\w+|HF_\w+|xverse (?:{commands})|/[a-z]{{4,}}|docs/[\w.-]+"
    for key, english, chinese in PAIRS:
        assert set(re.findall(typed, english)) == set(re.findall(typed, chinese)), key


def build_command() -> Any:
    return typer.main.get_command(build_app())


def test_errors_read_as_sentences() -> None:
    for code, (message, hint) in zh.ERRORS.items():
        assert message.endswith(("。", "{detail}")), code
        assert not hint.startswith(" "), code


def test_lists_and_sizes() -> None:
    messages.use("zh")
    error = XverseError("checkpoint.missing_shards", path="/m", names=[f"s{i}" for i in range(23)])
    assert "、s18、s19，另有 3 项" in messages.error_text(error)[0]
    assert [messages.size(n) for n in (5, 2048)] == ["5 字节", "2.0 KiB"]


# What others say in English.


def sources() -> list[ast.AST]:
    folders = [ROOT / "runtime", ROOT / "kernels", ROOT / "xverse_cli" / "models"]
    files = [path for folder in folders for path in folder.rglob("*.py")]
    return [node for path in files for node in ast.walk(ast.parse(path.read_text("utf-8")))]


def said(node: ast.AST) -> str | None:
    """A text of the source, with something in the place of what it is filled with."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(said(part) or "X" for part in node.values)
    return None


NODES = sources()
SAID = [text for node in NODES if (text := said(node)) is not None]


def test_every_detail_is_still_said() -> None:
    for english in DETAILS.keys() - SYSTEM.keys():
        assert any(_pattern(english).fullmatch(text) for text in SAID), english


def reasons() -> Iterator[str]:
    """What functions return that say why something cannot be, and why downloads falter."""
    for node in NODES:
        if isinstance(node, ast.FunctionDef) and "why" in node.name:
            for inner in ast.walk(node):
                if isinstance(inner, ast.Return) and inner.value is not None:
                    yield said(inner.value) or ""
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "TransientError":
            yield said(node.args[0]) or ""
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "_invalid":
            yield said(node.args[-1]) or ""


def expectations() -> Iterator[str]:
    """What is expected of values in the files of models, machines and settings of sampling."""
    for node in NODES:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "expected":
            yield said(node.value) or ""
        if isinstance(node, ast.Call):
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            if name in ("_bad", "_bad_value") and node.args:
                yield said(node.args[-1]) or ""


def test_every_reason_is_known() -> None:
    known = {*reasons(), *expectations()} - {""}
    assert len(known) > 30
    assert [one for one in sorted(known) if reworded(one, DETAILS) == one] == ["HTTP X"]


def test_details_within_details() -> None:
    english = "reference (the faster cpu kernels are missing: No module named 'x')"
    assert reworded(english, DETAILS) == "reference（缺少更快的 cpu 内核：没有模块 'x'）"
    assert reworded("something else", DETAILS) == "something else"


def test_details_without_a_translation_are_quoted() -> None:
    with messages.worded_in("zh"):
        assert messages.detail("Expected '=' after a key") == "原文为“Expected '=' after a key”"
        assert messages.detail("No such file or directory") == "文件或目录不存在"
        assert [*map(messages.detail, ("/a b/c", "HTTP 503", "已有译文 as it is"))] == [
            *("/a b/c", "HTTP 503", "已有译文 as it is")
        ]
    assert messages.detail("Expected '=' after a key") == "Expected '=' after a key"


def test_details_of_errors() -> None:
    error = XverseError("path.unreadable", path="x", detail="Permission denied")
    assert messages.error_text(error)[0] == "x cannot be read: Permission denied."
    messages.use("zh")
    assert messages.error_text(error)[0] == "无法读取 x：权限不足。"
