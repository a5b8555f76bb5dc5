"""Whether a computation gives the same bits every time, in memory that shows what was missed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import pytest
import torch
from torch import Tensor

from tests.kernels.poison import poison_of

ROUNDS = 20
Result = TypeVar("Result", Tensor, tuple[Tensor, ...])


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """New memory holds poison, integers too, so whatever a kernel leaves unwritten shows."""
    real = torch.empty

    def empty(*args: object, **kwargs: object) -> Tensor:
        tensor: Tensor = real(*args, **kwargs)  # type: ignore[call-overload]
        return tensor.fill_(poison_of(tensor.dtype))

    def empty_like(x: Tensor) -> Tensor:
        return empty(x.shape, dtype=x.dtype, device=x.device)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(torch, "empty", empty)
        patched.setattr(torch, "empty_like", empty_like)
        yield


def same_every_time(compute: Callable[[], Result]) -> Result:
    """The result of ``compute``, which is bit-equal over 20 more runs.

    A tensor that every run writes anew is copied by ``compute``.
    """
    first = compute()
    for _ in range(ROUNDS):
        again = compute()
        for one, other in zip(_tensors(first), _tensors(again), strict=True):
            assert torch.equal(one, other)
    return first


def _tensors(result: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (result,) if isinstance(result, Tensor) else tuple(result)
