"""The publisher's sampling settings, ``generation_config.json``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from xverse_runtime.errors import UnsupportedModelError
from xverse_runtime.model_dir import ModelDirectory
from xverse_runtime.sampling import check_params
from xverse_runtime.types import SamplingParams

GENERATION_CONFIG_FILE = "generation_config.json"
# Key in the file -> (field of SamplingParams, type).
KEYS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "temperature": ("temperature", float),
    "top_k": ("top_k", int),
    "top_p": ("top_p", float),
    "min_p": ("min_p", float),
    "repetition_penalty": ("repetition_penalty", float),
    "max_new_tokens": ("max_new_tokens", int),
}


def read_sampling_defaults(directory: ModelDirectory) -> SamplingParams:
    """Settings of the file, or neutral ones without it; ``do_sample: false`` is greedy.

    Raises:
        UnsupportedModelError: ``config.bad_value``, naming key and value.
    """
    if not directory.has(GENERATION_CONFIG_FILE):
        return SamplingParams()
    data = directory.read_json(GENERATION_CONFIG_FILE)
    values: dict[str, Any] = {}
    for key, (name, kind) in KEYS.items():
        if data.get(key) is not None:
            if isinstance(data[key], bool) or not isinstance(data[key], (int, float)):
                raise UnsupportedModelError(
                    "config.bad_value", key=key, value=data[key], expected="a number"
                )
            values[name] = kind(data[key])
    if data.get("do_sample") is False:
        values["temperature"] = 0.0
    params = SamplingParams(**values)
    check_params(params)
    return params


def read_end_tokens(directory: ModelDirectory) -> tuple[int, ...]:
    """``eos_token_id`` of the file: a number or a list; none without the file."""
    if not directory.has(GENERATION_CONFIG_FILE):
        return ()
    value = directory.read_json(GENERATION_CONFIG_FILE).get("eos_token_id")
    values = value if isinstance(value, list) else [value]
    return tuple(one for one in values if type(one) is int and one >= 0)
