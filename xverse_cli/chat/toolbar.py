"""The line at the bottom: model and placement, context, speed, and hits where experts are moved."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from xverse_cli.chat.context import used_tokens
from xverse_cli.messages import text
from xverse_cli.render.columns import columns
from xverse_runtime.errors import XverseError
from xverse_runtime.types import LoadProgress

if TYPE_CHECKING:
    from xverse_cli.chat.repl import Repl

_BETWEEN = " · "


class Toolbar:
    """Facts that are looked up when a prompt begins, and shown as far as the width goes."""

    def __init__(self) -> None:
        self._parts: list[str] = []

    def update(self, chat: Repl) -> None:
        """Look the facts up; the most important ones first."""
        progress = chat.models.loading
        self._parts = _loading(chat, progress) if progress else _facts(chat)

    def line(self, room: int) -> str:
        """As many facts as fit into ``room`` columns."""
        line = ""
        for part in self._parts:
            longer = line + (_BETWEEN if line else "") + part
            if columns(longer) > room - 1:
                break
            line = longer
        return line


def _loading(chat: Repl, progress: LoadProgress) -> list[str]:
    share = progress.done_bytes / progress.total_bytes if progress.total_bytes else 0.0
    name = chat.settings.model.rstrip("/").rpartition("/")[2]
    return [
        text("toolbar.loading", model=name, percent=round(100 * share)),
        text("toolbar.type_ahead"),
    ]


def _facts(chat: Repl) -> list[str]:
    engine = chat.engine
    parts = [
        engine.model_name.rstrip("/").rpartition("/")[2],
        text("toolbar.placement", device=engine.device, precision=engine.precision),
    ]
    with suppress(XverseError):  # a template may refuse the conversation; its turns say so
        used, limit = used_tokens(chat.conversation, engine), engine.context_length
        percent = round(100 * used / limit)
        parts.insert(0, text("toolbar.context", used=used, limit=limit, percent=percent))
    last = chat.runner.last
    if last is not None and last.last.timings.decode_tokens_per_s:
        rate = f"{last.last.timings.decode_tokens_per_s:.1f}"
        parts.append(text("toolbar.rate", rate=rate))
    offload = engine.offload_statistics
    if offload is not None and offload.hit_rate is not None:
        parts.append(text("toolbar.hits", percent=round(100 * offload.hit_rate)))
    if chat.attachments.files:
        parts.insert(0, text("toolbar.files", count=len(chat.attachments.files)))
    return parts
