"""Chat templates in Jinja, as published in tokenizer configs; rendered in a sandbox."""

from __future__ import annotations

import datetime
import re
from collections.abc import Sequence
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

from xverse_runtime.chat_template import check_messages
from xverse_runtime.errors import UsageError
from xverse_runtime.tokenizer import Tokenizer, split_specials
from xverse_runtime.types import Message

# Stands for special tokens that a user wrote, while the template is rendered around them.
FIRST_SENTINEL = 0xF0000  # supplementary private use area


class JinjaFormat:
    """`ChatFormat` of a Jinja template."""

    name = "jinja"

    def __init__(self, source: str, origin: str, special_tokens: dict[str, str]) -> None:
        """
        Args:
            source: the template.
            origin: where it came from, for messages.
            special_tokens: variables such as ``eos_token`` that templates use.

        Raises:
            UsageError: ``template.jinja_invalid`` or ``template.no_messages``.
        """
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = _strftime_now
        self._special_tokens = special_tokens
        try:
            tree = environment.parse(source)
            self._template = environment.from_string(tree)
        except (jinja2.TemplateError, RecursionError) as error:
            raise UsageError(
                "template.jinja_invalid", source=origin, detail=_first_line(error)
            ) from None
        # Any text is a valid template, one that says the same whatever the conversation.
        names = tree.find_all(nodes.Name)
        if not any(name.name == "messages" and name.ctx == "load" for name in names):
            raise UsageError("template.no_messages", source=origin)

    def encode(self, messages: Sequence[Message], tokenizer: Tokenizer) -> list[int]:
        """Raises UsageError: ``template.render_failed`` or ``template.invalid_messages``."""
        check_messages(messages)
        specials = list(tokenizer.special_tokens)
        sentinels = {chr(FIRST_SENTINEL + i): text for i, text in enumerate(specials)}
        text = self._render([(m.role, _hide(m.content, specials)) for m in messages])
        ids: list[int] = []
        for part in split_specials(text, list(sentinels)):
            literal = sentinels.get(part)
            if literal is None:
                ids += tokenizer.encode(part, parse_special=True)
            else:
                ids += tokenizer.encode(literal)
        return ids

    def _render(self, messages: list[tuple[str, str]]) -> str:
        dicts: list[dict[str, Any]] = [{"role": role, "content": text} for role, text in messages]
        open_reply = messages[-1][0] == "assistant"
        # A reply to be continued is rendered as a marker, so that the text can be cut behind it.
        marker = chr(FIRST_SENTINEL - 1)
        if open_reply:
            dicts[-1]["content"] += marker
        try:
            text = self._template.render(
                messages=dicts, add_generation_prompt=not open_reply, **self._special_tokens
            )
        except Exception as error:  # a template can fail in any way that Python can
            raise UsageError("template.render_failed", detail=_first_line(error)) from None
        return text.rpartition(marker)[0] if open_reply and marker in text else text


def _hide(content: str, specials: list[str]) -> str:
    """``content`` with each special token replaced by its sentinel character."""
    numbers = {text: chr(FIRST_SENTINEL + i) for i, text in enumerate(specials)}
    reserved = f"[{chr(FIRST_SENTINEL - 1)}-{chr(FIRST_SENTINEL + len(specials))}]"
    cleaned = re.sub(reserved, "", content)
    return "".join(numbers.get(part, part) for part in split_specials(cleaned, specials))


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.datetime.now().strftime(form)


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:300] if text else type(error).__name__
