"""Prompts on slow processors: the steps between two looks at the cancel flag stay short."""

from __future__ import annotations

import pytest
import torch

from tests.runtime.helpers import GOLDEN, load_decoder
from xverse_runtime import generation
from xverse_runtime.generation import LONGEST_STEP_S, SMALLEST_PACED_CHUNK, Prefill


class Clock:
    """Time that passes as fast as the chunks say: ``s`` a token of the chunk in each layer."""

    def __init__(self, s: float) -> None:
        self.s = s
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def chunks_of(
    monkeypatch: pytest.MonkeyPatch, s: float, *, paced: bool, tokens: int = 200
) -> list[int]:
    """The sizes of the chunks of a prompt, when a layer takes ``s`` for each token."""
    decoder, cache = load_decoder(GOLDEN / "moe-bin", context=tokens)
    clock = Clock(s)
    monkeypatch.setattr(generation, "perf_counter", clock)
    sizes: list[int] = []
    forward = decoder.forward

    def timed(ids: list[int], *args: object, between: object = None, **more: object) -> object:
        sizes.append(len(ids))

        def look() -> None:
            clock.now += clock.s * len(ids)
            between()  # type: ignore[operator]

        return forward(ids, *args, between=look, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(decoder, "forward", timed)
    prefill = Prefill(decoder, 80, paced=paced)
    prefill([10 + number % 20 for number in range(tokens - 1)], cache, lambda: None)
    return sizes


def test_chunks_get_smaller_where_a_step_takes_long(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = LONGEST_STEP_S / 20  # 20 tokens are the most
    assert chunks_of(monkeypatch, slow, paced=True) == [80, 40, 32, 32, 15]
    assert SMALLEST_PACED_CHUNK == 32
    fair = LONGEST_STEP_S / 50
    assert chunks_of(monkeypatch, fair, paced=True) == [80, 40, 40, 39]


def test_fast_machines_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert chunks_of(monkeypatch, LONGEST_STEP_S / 100, paced=True) == [80, 80, 39]
    assert chunks_of(monkeypatch, LONGEST_STEP_S, paced=False) == [80, 80, 39]


def test_a_pause_in_between_does_not_slow_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder, cache = load_decoder(GOLDEN / "moe-bin", context=400)
    clock = Clock(0.0)
    monkeypatch.setattr(generation, "perf_counter", clock)
    sizes: list[int] = []
    forward = decoder.forward

    def once_slow(ids: list[int], *args: object, between: object = None, **more: object) -> object:
        sizes.append(len(ids))
        clock.now += 1.0 if len(sizes) == 1 else 0.0  # pages that came from the disk
        return forward(ids, *args, between=between, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(decoder, "forward", once_slow)
    logits = Prefill(decoder, 80, paced=True)([10] * 399, cache, lambda: None)
    assert sizes == [80, 40, 80, 80, 80, 39]
    assert torch.isfinite(logits).all()
