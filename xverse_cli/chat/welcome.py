"""The first lines of a chat, and the ones that stand there only once."""

from __future__ import annotations

from contextlib import suppress

from xverse_cli.messages import text
from xverse_cli.models.find import DEMO
from xverse_cli.settings import state_dir
from xverse_cli.streams import QUIET, Streams
from xverse_runtime.types import TextGenerator

RAW = "raw"
_MARK = "welcomed"


def first_welcome(streams: Streams) -> None:
    """At the first chat on this machine: what to know, the licence, the vendor's disclaimer."""
    mark = state_dir() / _MARK
    if mark.exists():
        return
    for line in (
        text("welcome.hello"),
        text("welcome.keys"),
        text("welcome.sessions"),
        text("welcome.context"),
        "",
        text("welcome.licence"),
        "",
        text("welcome.disclaimer"),
        "",
    ):
        streams.say(line)
    if streams.verbosity <= QUIET:
        return
    with suppress(OSError):  # then it stands there once more
        mark.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        mark.touch(mode=0o600)


def welcome(engine: TextGenerator, asked_for: str, streams: Streams, *, interactive: bool) -> None:
    """Say which model this is and how to use the prompt; warn of what will surprise."""
    if interactive:
        title = text("chat.title", model=engine.model_name, context_length=engine.context_length)
        streams.say(title)
        if asked_for == DEMO:
            streams.say(text("chat.demo"))
        streams.say(text("chat.how_to"))
    if engine.template_choice.name == RAW:
        streams.warn(text("chat.raw_warning"))
