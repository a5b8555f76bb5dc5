"""English: what Typer says, in help and of command lines that cannot be read."""

from __future__ import annotations

USAGE_TEXTS: dict[str, str] = {
    "help.usage": "Usage: ",
    "help.heading": "{name}:",
    "help.arguments": "Arguments",
    "help.options": "Options",
    "help.commands": "Commands",
    "help.help": "Show this message and exit.",
    "help.default": "default: {default}",
    "help.required": "required",
    "usage.no_such_option": "No such option: {option}.",
    "usage.no_such_command": "No such command: {command}.",
    "usage.perhaps": "{problem} Did you mean {nearest}?",
    "usage.missing_argument": "Missing argument {name}.",
    "usage.missing_option": "Missing option {name}.",
    "usage.surplus": "Too many arguments: {arguments}.",
    "usage.needs_value": "Option {option} needs a value.",
    "usage.takes_no_value": "Option {option} takes no value.",
    "usage.bad_value": "Invalid value for {name}: {problem}",
}
