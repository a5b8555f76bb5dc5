"""What the user has set: flags > `XVERSE_*` environment > TOML file > defaults.

The only reader of the environment. Every setting stands in `SETTINGS`; command line, environment
and file share its readers, so that a bad value is the same clear error wherever it comes from.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from xverse_cli.messages import text
from xverse_cli.values import (
    Reader,
    byte_count,
    choice,
    integer,
    model_name,
    number,
    on_off,
    switch,
    words,
)
from xverse_runtime.errors import UsageError

Overflow = Literal["trim", "error", "summarise"]

PREFIX = "XVERSE_"
DEFAULT_MODEL = "xverse/XVERSE-MoE-A4.2B-Chat"

SETTINGS: dict[str, Reader] = {
    "model": model_name,
    "device": choice("auto", "cpu", "cuda"),
    "precision": choice("auto", "fp32", "bf16", "fp16", "int8", "int4"),
    "context": integer(1),
    "chat_template": words,
    "kv": choice("auto", "bf16", "int8"),
    "threads": integer(1, 4096),
    "backend": choice("auto", "triton", "cpu", "reference"),
    "cuda_graph": on_off,
    "lookup": on_off,
    "gpu_memory": byte_count,
    "cpu_memory": byte_count,
    "markdown": on_off,
    "system": words,
    "temperature": number(0),
    "top_k": integer(0),
    "top_p": number(0, 1, above_minimum=True),
    "min_p": number(0, 1),
    "repetition_penalty": number(0, above_minimum=True),
    "max_tokens": integer(1),
    "seed": integer(0),
    "overflow": choice("trim", "error", "summarise"),
    "editing": choice("emacs", "vi"),
    "save": on_off,
}
CHAT_ALONE = ("overflow", "editing", "save")  # settings that other commands have no use for

# Variables beside the settings themselves.
CONFIG_VARIABLE = "XVERSE_CONFIG"
LANGUAGE_VARIABLE = "XVERSE_LANG"
_LOCALE_VARIABLES = ("LC_ALL", "LC_MESSAGES", "LANG")  # in the order in which they count
DEBUG_VARIABLE = "XVERSE_DEBUG"
MODELSCOPE_VARIABLE = "MODELSCOPE_DOMAIN"


@dataclass(frozen=True)
class Settings:
    """The settings of one run; ``None`` leaves a value to the model or the runtime."""

    model: str = DEFAULT_MODEL
    device: str = "auto"
    precision: str = "auto"
    context: int | None = None
    chat_template: str | None = None
    kv: str = "auto"
    threads: int | None = None
    backend: str = "auto"
    cuda_graph: bool = True
    lookup: bool = True
    gpu_memory: int | None = None
    cpu_memory: int | None = None
    markdown: bool | None = None
    system: str | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    max_tokens: int | None = None
    seed: int | None = None
    overflow: Overflow = "trim"
    editing: str = "emacs"
    save: bool | None = None


def load_settings(flags: Mapping[str, object], environ: Mapping[str, str]) -> Settings:
    """The settings in effect.

    Args:
        flags: values read from the command line; ``None`` and names that are no settings are
            passed over.
        environ: the environment.

    Raises:
        UsageError: ``settings.bad_value``, ``settings.unknown_key``, ``settings.file_unreadable``
            or ``settings.file_invalid``.
    """
    given = {key: value for key, value in flags.items() if key in SETTINGS and value is not None}
    # A value that is overridden is not looked at: it may be what the user wants to get around.
    from_environment = _from_environment(environ, given)
    from_file = _from_file(environ, {**from_environment, **given})
    merged: dict[str, Any] = {**from_file, **from_environment, **given}
    return Settings(**merged)


def variable(key: str) -> str:
    """The environment variable of a setting."""
    return PREFIX + key.upper()


def language(environ: Mapping[str, str]) -> str:
    """``zh`` or ``en``: what `XVERSE_LANG` says, else the locale; English of everything else."""
    for name in (LANGUAGE_VARIABLE, *_LOCALE_VARIABLES):
        if wanted := environ.get(name, "").strip():
            return _language_of(wanted)
    return _language_of(_system_locale())


def _language_of(locale: str) -> str:
    """``zh`` of every Chinese locale: zh, zh_TW.UTF-8, zh-Hans, Windows' Chinese (Simplified)."""
    name = re.split(r"[^a-z]", locale.lower(), maxsplit=1)[0]
    return "zh" if name in ("zh", "chinese") else "en"


def _system_locale() -> str:
    """Windows knows its language without variables; elsewhere a locale without them is English."""
    if sys.platform != "win32":
        return ""
    import locale

    return locale.getlocale()[0] or ""


def debug(environ: Mapping[str, str]) -> bool:
    """Whether unexpected errors show their traceback."""
    return switch(environ.get(DEBUG_VARIABLE, ""))


def config_file(environ: Mapping[str, str]) -> Path:
    """The settings file: `XVERSE_CONFIG`, else ``config.toml`` in the platform's place."""
    if named := environ.get(CONFIG_VARIABLE):
        return Path(named).expanduser()
    from platformdirs import user_config_path

    return user_config_path("xverse", appauthor=False) / "config.toml"


def state_dir() -> Path:
    """Where the sessions of the chat and the history of its prompt are kept."""
    from platformdirs import user_state_path

    return user_state_path("xverse", appauthor=False)


def data_dir() -> Path:
    """Where converted models are kept."""
    from platformdirs import user_data_path

    return user_data_path("xverse", appauthor=False)


def cache_dir() -> Path:
    """Where things are kept that can be made again."""
    from platformdirs import user_cache_path

    return user_cache_path("xverse", appauthor=False)


def modelscope_endpoint(environ: Mapping[str, str]) -> str:
    """ModelScope's address; `MODELSCOPE_DOMAIN` names another host, as its own library takes it."""
    named = environ.get(MODELSCOPE_VARIABLE, "").strip().rstrip("/")
    if not named:
        return "https://www.modelscope.cn"
    return named if "://" in named else f"https://{named}"


def misspelt_variables(environ: Mapping[str, str]) -> list[tuple[str, str]]:
    """`XVERSE_*` variables that are none of ours but nearly are, with the likely one."""
    known = [variable(key) for key in SETTINGS]
    known += [CONFIG_VARIABLE, LANGUAGE_VARIABLE, DEBUG_VARIABLE]
    unknown = [name for name in environ if name.startswith(PREFIX) and name not in known]
    if not unknown:
        return []
    from difflib import get_close_matches

    guesses = [(name, get_close_matches(name, known, 1, 0.8)) for name in sorted(unknown)]
    return [(name, guess[0]) for name, guess in guesses if guess]


def _from_environment(
    environ: Mapping[str, str], overridden: Mapping[str, object]
) -> dict[str, object]:
    named = {key: environ.get(variable(key), "") for key in SETTINGS if key not in overridden}
    return {key: _read(key, value, variable(key)) for key, value in named.items() if value}


def _from_file(environ: Mapping[str, str], overridden: Mapping[str, object]) -> dict[str, object]:
    # Part of Python from 3.11 on; imported here because help does not need it.
    tomllib = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    path = config_file(environ)
    try:
        table = tomllib.loads(path.read_bytes().decode("utf-8-sig"))
    except (FileNotFoundError, NotADirectoryError):
        if environ.get(CONFIG_VARIABLE):
            detail = text("settings.no_such_file")
            raise UsageError("settings.file_unreadable", path=path, detail=detail) from None
        return {}
    except OSError as error:
        detail = error.strerror or str(error)
        raise UsageError("settings.file_unreadable", path=path, detail=detail) from None
    except ValueError as error:  # not UTF-8, or not TOML
        raise UsageError("settings.file_invalid", path=path, detail=str(error)) from None
    for key in table:
        if key not in SETTINGS:
            raise _unknown_key(key, path)
    wanted = {key: value for key, value in table.items() if key not in overridden}
    return {key: _read(key, value, f"{key} ({path})") for key, value in wanted.items()}


def _unknown_key(key: str, path: Path) -> UsageError:
    from difflib import get_close_matches

    guess = get_close_matches(key.replace("-", "_"), SETTINGS, 1)
    if guess:
        return UsageError("settings.unknown_key_near", key=key, path=path, nearest=guess[0])
    return UsageError("settings.unknown_key", key=key, path=path, known=", ".join(SETTINGS))


def _read(key: str, value: object, where: str) -> object:
    try:
        return SETTINGS[key](value)
    except ValueError as error:
        raise UsageError(
            "settings.bad_value", where=where, value=value, expected=str(error)
        ) from None
