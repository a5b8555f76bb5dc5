"""Commands that set how the next replies are made, and by which model."""

from __future__ import annotations

from dataclasses import replace
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, get_args

from xverse_cli.chat.commands.registry import SlashCommand
from xverse_cli.generation import SAMPLING, sampling_params
from xverse_cli.messages import detail, text
from xverse_cli.settings import SETTINGS, Overflow, Settings
from xverse_runtime.errors import UsageError

if TYPE_CHECKING:
    from xverse_cli.chat.repl import Repl

NAMES = (*SAMPLING, "overflow")


def _set(chat: Repl, argument: str) -> None:
    name, _, value = argument.replace("=", " ").partition(" ")
    name, value = name.strip().lower().replace("-", "_"), value.strip()
    if not name:
        for one in NAMES:
            chat.say(f"  {one} = {_value(chat, one)}")
    elif name not in NAMES:
        nearest = get_close_matches(name, NAMES, 1)
        raise UsageError("set.unknown", name=name, known=nearest or NAMES)
    elif not value:
        chat.say(f"  {name} = {_value(chat, name)}")
    else:
        _change(chat, name, None if value == "-" else _read(name, value))
        chat.say(text("set.done", name=name, value=_value(chat, name)))


def _change(chat: Repl, name: str, value: object) -> None:
    """Set a value; ``None`` goes back to the default."""
    chat.ready()
    changed: dict[str, Any] = {name: getattr(Settings(), name) if value is None else value}
    chat.settings = replace(chat.settings, **changed)
    runner = chat.runner
    runner.params = sampling_params(chat.engine.default_sampling, chat.settings)
    runner.limit_chosen = chat.settings.max_tokens is not None
    runner.overflow = chat.settings.overflow


def _read(name: str, value: str) -> object:
    try:
        return SETTINGS[name](value)
    except ValueError as error:
        raise UsageError(
            "settings.bad_value", where=name, value=value, expected=str(error)
        ) from None


def _value(chat: Repl, name: str) -> str:
    chat.ready()
    if name == "overflow":
        return chat.runner.overflow
    value = getattr(chat.runner.params, SAMPLING[name])
    return text("set.random") if value is None else str(value)


def _model(chat: Repl, argument: str) -> None:
    if argument:
        chat.change_model(argument)
    else:
        chat.ready()
        engine = chat.engine
        chat.say(
            text(
                "model.is",
                model=engine.model_name,
                device=engine.device,
                precision=engine.precision,
                context_length=engine.context_length,
            )
        )
        for note in engine.notes:
            chat.say(f"  {detail(note)}")


def _names(chat: Repl) -> list[str]:
    return [*NAMES, *(f"overflow {policy}" for policy in get_args(Overflow))]


def _models(chat: Repl) -> list[str]:
    from xverse_cli.models.inventory import stored_models

    return ["demo", *dict.fromkeys(model.name for model in stored_models())]


SETTING = (
    SlashCommand("/set", "command.set", _set, "command.set_argument", _names),
    SlashCommand("/model", "command.model", _model, "command.model_argument", _models),
)
