"""The one rule of ``--precision auto``."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from xverse_runtime.config import ModelConfig
from xverse_runtime.store.precision import PRESETS, bytes_per_token
from xverse_runtime.store.synthetic import A4_2B
from xverse_runtime.suitable import READING_SPEED, most_suitable


@pytest.mark.parametrize(
    ("bandwidth", "name"), [(200e9, "bf16"), (80e9, "int8"), (50e9, "int4"), (1e9, "int4")]
)
def test_the_highest_precision_at_reading_speed(bandwidth: float, name: str) -> None:
    config = ModelConfig.from_dict(A4_2B)
    rates = {one: bandwidth / bytes_per_token(config, preset) for one, preset in PRESETS.items()}
    chosen = most_suitable(rates, lambda one: rates[one])
    assert chosen == name
    assert rates[name] >= READING_SPEED or name == "int4"


def test_nothing_is_looked_at_beyond_what_is_taken() -> None:
    def choices() -> Iterator[float]:
        yield 3.0
        yield READING_SPEED
        raise AssertionError("a plan was made for nothing")

    assert most_suitable(choices(), lambda rate: rate) == READING_SPEED


def test_of_nothing_nothing_suits() -> None:
    assert most_suitable([], lambda rate: rate) is None
