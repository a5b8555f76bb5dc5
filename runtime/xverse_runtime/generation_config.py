"""The publisher's sampling settings, ``generation_config.json``."""

from __future__ import annotations

from typing import Any

from xverse_runtime.errors import UnsupportedModelError, UsageError
from xverse_runtime.model_dir import ModelDirectory
from xverse_runtime.sampling import check_params
from xverse_runtime.types import SamplingParams

GENERATION_CONFIG_FILE = "generation_config.json"
NUMBERS = ("temperature", "top_p", "min_p", "repetition_penalty")  # as in SamplingParams
INTEGERS = ("top_k", "max_new_tokens")
LARGEST = 2.0**63  # what is larger is no setting, and may not even fit a float


def read_sampling_defaults(directory: ModelDirectory) -> SamplingParams:
    """Settings of the file, or neutral ones without it; ``do_sample: false`` is greedy.

    Raises:
        UnsupportedModelError: ``config.bad_value``, naming file, key and value.
    """
    if not directory.has(GENERATION_CONFIG_FILE):
        return SamplingParams()
    path = str(directory.path / GENERATION_CONFIG_FILE)
    data = directory.read_json(GENERATION_CONFIG_FILE)
    values: dict[str, Any] = {}
    for key in (*NUMBERS, *INTEGERS):
        if data.get(key) is not None:
            values[key] = _number(path, key, data[key], whole=key in INTEGERS)
    if data.get("do_sample") is False:
        values["temperature"] = 0.0
    params = SamplingParams(**values)
    try:
        check_params(params)
    except UsageError as error:  # nobody asked for this value: it is the file's
        raise _bad_value(path, **error.params) from None
    return params


def _number(path: str, key: str, value: Any, *, whole: bool) -> float:
    kind = "a whole number" if whole else "a number"
    if type(value) not in (int, float) or not abs(value) < LARGEST:
        raise _bad_value(path, key, value, kind)
    if whole and value != int(value):
        raise _bad_value(path, key, value, kind)
    return int(value) if whole else float(value)


def _bad_value(path: str, name: object, value: object, expected: object) -> UnsupportedModelError:
    return UnsupportedModelError(
        "config.bad_value", path=path, key=name, value=value, expected=expected
    )


def read_end_tokens(directory: ModelDirectory) -> tuple[int, ...]:
    """``eos_token_id`` of the file: a number or a list; none without the file."""
    if not directory.has(GENERATION_CONFIG_FILE):
        return ()
    value = directory.read_json(GENERATION_CONFIG_FILE).get("eos_token_id")
    values = value if isinstance(value, list) else [value]
    return tuple(one for one in values if type(one) is int and one >= 0)
