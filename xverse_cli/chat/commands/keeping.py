"""Commands about what is kept: sessions, exports, the clipboard, files that go along."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from xverse_cli.chat.attachments import read_attachment
from xverse_cli.chat.clipboard import copy_text
from xverse_cli.chat.code_blocks import code_blocks
from xverse_cli.chat.commands.registry import SlashCommand
from xverse_cli.chat.context import attachment_line
from xverse_cli.chat.sessions.export import export_to
from xverse_cli.chat.sessions.folder import find_session, saved_sessions
from xverse_cli.chat.sessions.listing import session_rows
from xverse_cli.messages import text

if TYPE_CHECKING:
    from xverse_cli.chat.repl import Repl


def _save(chat: Repl, argument: str) -> None:
    recorder = chat.recorder
    if not recorder.enabled:
        recorder.start()
    if argument:
        recorder.call(argument)
    else:
        recorder.try_again()
    if not recorder.waiting:  # otherwise it has said so
        key = "session.saved_as" if recorder.saving else "session.nothing_yet"
        chat.say(text(key, session=_label(chat)))


def _label(chat: Repl) -> str:
    recorder = chat.recorder
    return f"{recorder.id} ({recorder.name})" if recorder.name else recorder.id


def _load(chat: Repl, argument: str) -> None:
    if argument:
        chat.switch(find_session(argument))
    else:
        _sessions(chat, argument)


def _sessions(chat: Repl, argument: str) -> None:
    rows = session_rows(saved_sessions(), current=chat.recorder.id)
    for row in rows:
        chat.say(row)
    if not rows:
        chat.say(text("session.none_yet"))


def _export(chat: Repl, argument: str) -> None:
    path = export_to(Path(argument or f"{chat.recorder.id}.md").expanduser(), chat.as_saved())
    chat.say(text("session.exported", path=path))


def _copy(chat: Repl, argument: str) -> None:
    turns = chat.conversation.all_turns
    if not turns:
        chat.say(text("copy.nothing"))
        return
    reply = turns[-1].assistant
    words = argument.split()
    if words[:1] == ["code"] and len(words) <= 2:
        blocks = code_blocks(reply)
        number = words[1] if words[1:] else "1"
        if not number.isdecimal() or not 1 <= int(number) <= len(blocks):
            chat.say(text("copy.no_such_block", number=number, count=len(blocks)))
            return
        reply = blocks[int(number) - 1]
    elif words:
        chat.say(text("copy.usage"))
        return
    chat.say(copy_text(reply, chat.host))


def _file(chat: Repl, argument: str) -> None:
    attachments = chat.attachments
    if argument == "-":
        attachments.clear()
        chat.say(text("file.removed"))
    elif argument:
        chat.ready()
        attachment = read_attachment(argument.strip("\"'"))
        fits, line = attachment_line(attachment, chat)
        chat.say(line)
        if fits:
            attachments.files.append(attachment)
    elif attachments.files:
        chat.ready()
        for attachment in attachments.files:
            chat.say(attachment_line(attachment, chat)[1])
    else:
        chat.say(text("file.none"))


def _session_ids(chat: Repl) -> list[str]:
    return [session.name or session.id for session in saved_sessions()]


def _parts(chat: Repl) -> list[str]:
    turns = chat.conversation.all_turns
    count = len(code_blocks(turns[-1].assistant)) if turns else 0
    return [f"code {number + 1}" for number in range(count)]


KEEPING = (
    SlashCommand("/file", "command.file", _file, "command.file_argument", takes_path=True),
    SlashCommand("/copy", "command.copy", _copy, "command.copy_argument", _parts),
    SlashCommand("/save", "command.save", _save, "command.save_argument"),
    SlashCommand("/load", "command.load", _load, "command.load_argument", _session_ids),
    SlashCommand("/sessions", "command.sessions", _sessions),
    SlashCommand("/export", "command.export", _export, "command.export_argument", takes_path=True),
)
