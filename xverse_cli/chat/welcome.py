"""The first lines of a chat."""

from __future__ import annotations

from xverse_cli.messages import text
from xverse_cli.models.find import DEMO
from xverse_cli.streams import Streams
from xverse_runtime.types import TextGenerator

RAW = "raw"


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
