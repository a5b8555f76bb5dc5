"""The score window against LRU: more hits for fewer uploads (docs/offload.md has the tables)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from tools.demo.corpus import held_out_questions
from xverse_runtime.config import EngineConfig
from xverse_runtime.demo import demo_directory
from xverse_runtime.engine import Engine
from xverse_runtime.offload.expert_slots import ExpertSlots, Reservation
from xverse_runtime.offload.policy import ExpertPolicy, Key, LeastRecentlyUsed, ScoreWindow
from xverse_runtime.offload.replay import replay
from xverse_runtime.offload.synthetic_routing import SyntheticRouting
from xverse_runtime.offload.trace import RoutedToken, tokens_of
from xverse_runtime.offload.trace_file import TraceReader
from xverse_runtime.types import Message, SamplingParams


class CountingSlots(ExpertSlots):
    """Slots that count uploads."""

    uploads = 0

    def reserve(self, key: Key) -> Reservation | None:
        reservation = super().reserve(key)
        self.uploads += reservation is not None
        return reservation


def hits_and_uploads(
    tokens: Sequence[RoutedToken],
    warm_up: int,
    shape: tuple[int, int, int],
    slots: int,
    policy: ExpertPolicy,
) -> tuple[float, float]:
    """Hit rate and uploads a token; ``shape`` is layers, experts, top_k; ``slots`` of a layer."""
    layers, experts, top_k = shape
    book = CountingSlots(layers, experts, layers * slots, policy, floor=2)
    replay(tokens[:warm_up], book, top_k)
    book.uploads = 0
    rate = replay(tokens[warm_up:], book, top_k).rate
    return rate, book.uploads / len(tokens[warm_up:])


@pytest.mark.parametrize(("slots", "more"), [(12, 0.04), (20, 0.04), (36, 0.02), (48, 0.01)])
def test_on_the_calibrated_trace(synthetic: list[RoutedToken], slots: int, more: float) -> None:
    shape = (28, 64, 6)
    lru, lru_uploads = hits_and_uploads(synthetic, 256, shape, slots, LeastRecentlyUsed())
    new, new_uploads = hits_and_uploads(synthetic, 256, shape, slots, ScoreWindow.for_model(28, 6))
    assert new > lru + more
    assert new_uploads < 0.9 * lru_uploads


@pytest.fixture(scope="module")
def synthetic() -> list[RoutedToken]:
    return list(SyntheticRouting(seed=5).text(0, 512, listed=12))


def test_on_the_routing_of_the_demo(tmp_path: Path) -> None:
    engine = Engine.load(demo_directory(), EngineConfig(device="cpu"))
    recorder = engine.record_routing(tmp_path / "trace")
    for question in held_out_questions()[:12]:
        prompt = engine.encode_chat([Message("user", question.text)])
        list(engine.generate(prompt, SamplingParams(temperature=0, max_new_tokens=80)))
    recorder.close()
    tokens = tokens_of(TraceReader(tmp_path / "trace"))
    assert len(tokens) > 300
    for slots in (6, 8, 10):
        shape = (4, 16, 4)
        lru, lru_uploads = hits_and_uploads(tokens, 60, shape, slots, LeastRecentlyUsed())
        new, new_uploads = hits_and_uploads(tokens, 60, shape, slots, ScoreWindow.for_model(4, 4))
        assert new > lru
        assert new_uploads < 0.7 * lru_uploads
