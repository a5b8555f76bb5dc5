"""`/replay`: makes a reply again the way it was made, and compares."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from xverse_cli.chat.commands.registry import SlashCommand
from xverse_cli.chat.commands.turn_numbers import turn_place
from xverse_cli.chat.conversation import Conversation, Made, Turn
from xverse_cli.generation import params_of_settings
from xverse_cli.messages import text

if TYPE_CHECKING:
    from xverse_cli.chat.repl import Repl


def _replay(chat: Repl, argument: str) -> None:
    """Nothing of it becomes part of the conversation."""
    at = turn_place(chat.conversation, argument)
    turn = None if at is None else chat.conversation.all_turns[at]
    if at is None or turn is None or turn.made is None:
        chat.say(text("command.nothing_to_replay"))
        return
    chat.ready()
    made = turn.made
    for line in _differences(made, chat):
        chat.say(line)
    context = as_it_was(chat.conversation, at, made)
    same_prompt, reply = chat.runner.rehearse(context, turn.user, made, _params(made, turn))
    if not same_prompt:
        chat.say(text("replay.other_prompt"))
    if reply.finish_reason == "interrupted":
        chat.say(text("replay.stopped"))
    elif _same(reply.text, turn):
        chat.say(text("replay.same", seed=made.settings["seed"]))
    else:
        chat.say(text("replay.different"))


def as_it_was(conversation: Conversation, at: int, made: Made) -> Conversation:
    """What stood before turn ``at`` when it was answered."""
    turns = conversation.all_turns[made.left_out : at]
    return Conversation(made.system, turns, summary=made.summary)


def _params(made: Made, turn: Turn) -> Any:
    settings = dict(made.settings)
    if turn.interrupted and not made.continued:
        settings["max_tokens"] = made.completion_tokens  # as far as it came
    return params_of_settings(settings)


def _same(replayed: str, turn: Turn) -> bool:
    """A reply that was interrupted, or gone on with, is compared as far as both reach."""
    if turn.interrupted or (turn.made is not None and turn.made.continued):
        return replayed.startswith(turn.assistant) or turn.assistant.startswith(replayed)
    return replayed == turn.assistant


def _differences(made: Made, chat: Repl) -> list[str]:
    engine = chat.engine
    pairs = (
        (made.model, engine.model_name),
        (made.template, engine.template_choice.name),
        (made.device, engine.device),
        (made.precision, engine.precision),
    )
    return [text("replay.made_with", then=then, now=now) for then, now in pairs if then != now]


REPLAY = SlashCommand("/replay", "command.replay", _replay, "command.number_argument")
