"""The GPU's tests of kernels on a small model in the interpreter: those that need no CUDA.

Nobody has a GPU at hand whenever one of them is changed; it is to work at the first try there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode

from tests.kernels.triton.interpreter import CPU

# isort: split
from bench.gpu import inputs
from tests.gpu import repeat
from tests.gpu import test_kernels as on_gpu
from xverse_kernels.triton.backend import TritonBackend

pytestmark = pytest.mark.slow

SMALL = inputs.Shape(
    hidden=64,
    width=32,
    experts=17,
    shared=2,
    top_k=3,
    vocab=202,
    heads=2,
    dim=80,
    dtype=torch.float16,
    device="cpu",
)
BOTH_CACHES = [torch.float16, torch.int8]
CASES: list[tuple[Callable[..., None], tuple[Any, ...]]] = [
    *((on_gpu.test_experts, (form, tokens)) for form in ("fp16", "int4") for tokens in (1, 17)),
    *((on_gpu.test_an_absent_expert_adds_nothing, (tokens,)) for tokens in (1, 17)),
    *((on_gpu.test_groups_of_experts_one_after_the_other, ("int8", n)) for n in (2, 17)),
    *((on_gpu.test_linear, ("int8", rows, n)) for rows in (192, 202) for n in (1, 33)),
    *((on_gpu.test_linear, ("fp16", 202, n)) for n in (1, 33)),
    *((on_gpu.test_router, (tokens,)) for tokens in (1, 5, 17)),
    *((on_gpu.test_decode_attention, (past, c)) for past in (0, 100, 257) for c in BOTH_CACHES),
    *(
        (on_gpu.test_prefill_attention, (*span, c))
        for span in ((7, 0), (20, 33))
        for c in BOTH_CACHES
    ),
    *((on_gpu.test_one_seed_draws_one_token, (temperature,)) for temperature in (0.0, 0.8)),
]


class OnTheHost(TorchFunctionMode):
    """What is made on ``cuda`` is made on the CPU."""

    def __torch_function__(self, func: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if kwargs.get("device") == "cuda":
            kwargs["device"] = CPU
        return func(*args, **kwargs)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("hidden", "width", "experts", "shared", "top_k", "vocab", "heads", "dim", "dtype"):
        monkeypatch.setattr(on_gpu, name.upper(), getattr(SMALL, name))
    monkeypatch.setattr(on_gpu, "routing", partial(inputs.random_routing, shape=SMALL))
    monkeypatch.setattr(on_gpu, "random_rotary", partial(inputs.random_rotary, shape=SMALL))
    for name in ("random_packed", "random_experts"):
        make = getattr(on_gpu, name)
        monkeypatch.setattr(on_gpu, name, lambda *args, make=make: make(*args[:-1], "cpu"))
    monkeypatch.setattr(repeat, "ROUNDS", 1)
    with OnTheHost(), repeat.poisoned_memory():
        yield


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    ("test", "arguments"), CASES, ids=lambda one: getattr(one, "__name__", str(one))
)
def test_on_a_small_model(test: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    torch.manual_seed(0)
    test(TritonBackend(CPU), *arguments)
