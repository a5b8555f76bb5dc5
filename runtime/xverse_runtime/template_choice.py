"""Which chat format a model wants, in the order of truth (docs/decisions):

the user's wish; a template published with the tokenizer; the role strings in the publisher's
modeling code, read as text; the name of the model.
"""

from __future__ import annotations

import ast
import os
import re
import warnings
from pathlib import Path
from typing import Any

from xverse_runtime.chat_template import (
    ChatFormat,
    LiteralFormat,
    RawFormat,
    human_assistant,
    system_user_assistant,
)
from xverse_runtime.errors import UsageError
from xverse_runtime.jinja_format import JinjaFormat
from xverse_runtime.model_dir import ModelDirectory
from xverse_runtime.types import TemplateChoice

TOKENIZER_CONFIG_FILE = "tokenizer_config.json"
JINJA_FILE = "chat_template.jinja"
NAMES = ("human-assistant", "system-user-assistant", "raw")
MAX_MODELING_BYTES = 2 * 2**20
USER_ROLE = re.compile(r"(human|user): ?", re.IGNORECASE)
ASSISTANT_ROLE = re.compile(r"assistant: ?", re.IGNORECASE)
SYSTEM_ROLE = re.compile(r"system: ?", re.IGNORECASE)


def choose_chat_format(
    directory: ModelDirectory, end_token_id: int, requested: str | None, names: tuple[str, ...]
) -> tuple[ChatFormat, TemplateChoice]:
    """The format and why it was chosen.

    Args:
        directory: the model's.
        end_token_id: what ends an assistant's message.
        requested: a format's name, the path of a Jinja file, Jinja source, or ``None``.
        names: what the model is called: Hub id, directory, published name.

    Raises:
        UsageError: ``template.unknown``, ``template.file_unreadable``, ``template.jinja_invalid``
            or ``template.no_messages``.
    """
    if requested is not None:
        return _requested(requested, directory, end_token_id)
    return (
        _published_template(directory)
        or _from_modeling_code(directory, end_token_id)
        or _from_name(names, end_token_id)
    )


def _requested(
    requested: str, directory: ModelDirectory, end_token_id: int
) -> tuple[ChatFormat, TemplateChoice]:
    known: dict[str, ChatFormat] = {
        "human-assistant": human_assistant(end_token_id),
        "system-user-assistant": system_user_assistant(end_token_id),
        "raw": RawFormat(),
    }
    if requested in known:
        return known[requested], TemplateChoice(requested, "template.requested", requested)
    if "{{" in requested or "{%" in requested:
        source, origin = requested, "--chat-template"
    else:
        path = Path(os.path.expanduser(requested))
        if not os.path.isfile(path):  # unlike pathlib's, both take any text
            raise UsageError("template.unknown", name=requested, choices=", ".join(NAMES))
        try:
            source, origin = path.read_text(encoding="utf-8-sig"), str(path)
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(
                "template.file_unreadable", path=str(path), detail=str(error)
            ) from None
    jinja = JinjaFormat(source, origin, _special_tokens(directory))
    return jinja, TemplateChoice(jinja.name, "template.requested", origin)


def _published_template(directory: ModelDirectory) -> tuple[ChatFormat, TemplateChoice] | None:
    if directory.has(TOKENIZER_CONFIG_FILE):
        source = _default_template(directory.read_json(TOKENIZER_CONFIG_FILE).get("chat_template"))
        if source:
            jinja = JinjaFormat(source, TOKENIZER_CONFIG_FILE, _special_tokens(directory))
            choice = TemplateChoice(jinja.name, "template.tokenizer_config", TOKENIZER_CONFIG_FILE)
            return jinja, choice
    if directory.has(JINJA_FILE):
        jinja = JinjaFormat(directory.read_text(JINJA_FILE), JINJA_FILE, _special_tokens(directory))
        return jinja, TemplateChoice(jinja.name, "template.jinja_file", JINJA_FILE)
    return None


def _default_template(value: Any) -> str | None:
    """A template, or the one called ``default`` in a list of named ones."""
    if isinstance(value, list):
        named = {one.get("name"): one.get("template") for one in value if isinstance(one, dict)}
        value = named.get("default")
    return value if isinstance(value, str) and value else None


def _special_tokens(directory: ModelDirectory) -> dict[str, str]:
    """``bos_token`` and the like for templates: a string or an object with ``content``."""
    if not directory.has(TOKENIZER_CONFIG_FILE):
        return {}
    tokens: dict[str, str] = {}
    for name, value in directory.read_json(TOKENIZER_CONFIG_FILE).items():
        text = value.get("content") if isinstance(value, dict) else value
        if name.endswith("_token") and isinstance(text, str):
            tokens[name] = text
    return tokens


def _from_modeling_code(
    directory: ModelDirectory, end_token_id: int
) -> tuple[ChatFormat, TemplateChoice] | None:
    """Role strings among the string literals of ``modeling_*.py``, which is never run."""
    for name in directory.names("modeling_*.py"):
        literals = _string_literals(directory.file(name))
        user = next((one for one in literals if USER_ROLE.fullmatch(one)), None)
        assistant = next((one for one in literals if ASSISTANT_ROLE.fullmatch(one)), None)
        if user is None or assistant is None:
            continue
        system = next((one for one in literals if SYSTEM_ROLE.fullmatch(one)), None)
        base = human_assistant(end_token_id)
        if user.lower().startswith("user"):
            base = system_user_assistant(end_token_id)
        found = LiteralFormat(
            base.name,
            system or (base.system if user == base.user else user),
            base.system_end,
            user,
            base.user_end,
            assistant,
            end_token_id,
        )
        return found, TemplateChoice(found.name, "template.modeling_file", name)
    return None


def _string_literals(file: Path) -> list[str]:
    """All string literals of a Python file in the order of the text; parsing runs nothing."""
    if file.stat().st_size > MAX_MODELING_BYTES:
        return []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the publisher's style
            tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    strings = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    strings.sort(key=lambda node: (node.lineno, node.col_offset))
    return [str(node.value) for node in strings]


def _from_name(names: tuple[str, ...], end_token_id: int) -> tuple[ChatFormat, TemplateChoice]:
    for name in names:
        plain = name.rstrip("/").rsplit("/", 1)[-1].split("@", 1)[0]
        if plain.lower().endswith("-chat"):
            chosen = human_assistant(end_token_id)
            return chosen, TemplateChoice(chosen.name, "template.chat_name", plain)
    raw = RawFormat()
    return raw, TemplateChoice(raw.name, "template.base_model", names[0] if names else "")
