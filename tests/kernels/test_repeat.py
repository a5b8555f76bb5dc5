"""What GPU tests take for granted: poisoned memory, and seeing that a result changes."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

import pytest
import torch
from torch import Tensor

from tests.gpu.repeat import ROUNDS, poisoned_memory, same_every_time
from tests.kernels.poison import NAN, POISON_INT, poison_of
from xverse_kernels.types import RoutedTokens

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        (torch.bfloat16, NAN),
        (torch.float32, NAN),
        (torch.int32, POISON_INT),
        (torch.int64, POISON_INT),
        (torch.int8, 77),
        (torch.uint8, 77),
        (torch.bool, True),
    ],
    ids=str,
)
def test_new_memory_is_poisoned(dtype: torch.dtype, value: float) -> None:
    expected = torch.full((2, 3), value).to(dtype)
    with poisoned_memory():
        assert poison_of(dtype) == value or value != value
        for found in (
            torch.empty(2, 3, dtype=dtype, device=CPU),
            torch.empty((2, 3), dtype=dtype),
            torch.empty_like(expected),
        ):
            assert found.dtype == dtype
            assert torch.allclose(found.double(), expected.double(), equal_nan=True)
    assert torch.empty.__module__ != poisoned_memory.__module__


def runs(changed: int, place: str) -> Iterator[RoutedTokens]:
    """The same again and again, but for one number of one run."""
    for run in count():
        routed = RoutedTokens(*(torch.zeros(2, 3) for _ in RoutedTokens._fields))
        if run == changed:
            getattr(routed, place)[1, 2] = 1e-30
        yield routed


@pytest.mark.parametrize("place", RoutedTokens._fields)
@pytest.mark.parametrize("changed", [0, 1, ROUNDS])
def test_any_run_and_any_tensor_counts(changed: int, place: str) -> None:
    some = runs(changed, place)
    with pytest.raises(AssertionError):
        same_every_time(lambda: next(some))


def test_equal_runs_give_the_first() -> None:
    made: list[Tensor] = []

    def compute() -> Tensor:
        made.append(torch.ones(3))
        return made[-1]

    assert same_every_time(compute) is made[0]
    assert len(made) == 1 + ROUNDS == 21
