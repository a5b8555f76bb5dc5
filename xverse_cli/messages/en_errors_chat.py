"""English: errors of chats and saved sessions."""

from __future__ import annotations

_LIST = "The saved sessions: xverse sessions list"

CHAT_ERRORS: dict[str, tuple[str, str]] = {
    "context.conversation_full": (
        "With this message the conversation has {prompt_tokens} tokens; the context holds"
        " {context_length} with room for a reply.",
        "Shorten it, /undo, /clear, or let turns go: /set overflow trim, or /set overflow"
        " summarise",
    ),
    "command.no_such_turn": (
        "There is no turn {number}; the conversation has {count}.",
        "/show lists them.",
    ),
    "set.unknown": ("{name} is nothing to set here. Known: {known}.", "/set shows all values."),
    "session.not_found": ("There is no saved session {session}.", _LIST),
    "session.ambiguous": (
        "{session} stands for several sessions: {matches}.",
        "Write more of the id.",
    ),
    "session.none": ("There is no session to go on with.", "Begin one: xverse chat"),
    "session.in_use": (
        "The session {session} is open in another chat.",
        "Leave it there first, or begin a new one.",
    ),
    "session.unreadable": ("The session {path} cannot be read: {detail}.", _LIST),
    "session.newer": (
        "The session {path} was written by a later version of xverse (format {version}).",
        "Update xverse, or begin a new session.",
    ),
    "session.two_wanted": ("--continue and --resume exclude each other.", _LIST),
    "session.unasked": (
        "Nobody can be asked whether to delete.",
        "With --yes nothing is asked.",
    ),
    "session.which": ("No session is named.", "Name some, or --all. " + _LIST),
    "export.exists": ("{path} is there already; nothing was written.", "Choose another name."),
    "export.unwritable": ("{path} cannot be written: {detail}.", "Choose another place."),
}
