"""What was predicted, beside what was measured; and what expert offload did."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.conftest import Cli
from tests.cli.fake_engine import FakeEngine
from xverse_runtime import fit
from xverse_runtime.offload.machines import find_machine
from xverse_runtime.offload.statistics import OffloadStatistics
from xverse_runtime.prediction import Prediction
from xverse_runtime.store.convert import convert_checkpoint
from xverse_runtime.store.precision import PRESETS

GOLDEN = Path(__file__).parents[1] / "golden"


class Offloading(FakeEngine):
    """Knows what to expect, and has done something."""

    @property
    def offload_statistics(self) -> OffloadStatistics:  # type: ignore[override]
        return OffloadStatistics(tokens=12, hits=53, on_cpu=40, over_link=7, critical_bytes=700)

    def forecast(self, tokens: int) -> Prediction:  # type: ignore[override]
        return Prediction(41.0 if tokens < 4096 else 36.0, 0.75, 512, 5.0, 0.564, 0.0)


def test_predicted_beside_measured(cli: Cli) -> None:
    shown = cli("generate", "hi", "-v", engine=Offloading(token_s=0.01)).stderr
    assert "predicted with a full context: 36 tokens/s, first token of 512 after 0.8 s" in shown
    assert "predicted 41, measured " in shown
    assert "; hit rate predicted 0.56, measured 0.53" in shown


def test_nothing_is_said_unasked_or_unknown(cli: Cli) -> None:
    assert "predicted" not in cli("generate", "hi", engine=Offloading()).stderr
    assert "predicted" not in cli("generate", "hi", "-v").stderr


def test_counts_as_json(cli: Cli) -> None:
    told = cli("generate", "hi", "--json", engine=Offloading()).json["offload"]
    assert told["hit_rate"] == 0.53
    assert (told["hits"], told["on_cpu"], told["over_link"]) == (53, 40, 7)
    assert told["critical_bytes"] == 700
    assert "offload" not in cli("generate", "hi", "--json").json


def test_a_store_on_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine is measured only for those who want to know more."""
    from xverse_runtime.config import EngineConfig
    from xverse_runtime.engine import Engine

    store, measured = tmp_path / "store", []

    def measure(device: object) -> object:
        measured.append(device)
        return find_machine("4060")

    monkeypatch.setattr(fit, "measure_machine", measure)
    convert_checkpoint(GOLDEN / "moe-gqa", store, PRESETS["int4"])
    plain = Engine.load(store, EngineConfig(device="cpu"))
    assert plain.forecast(10) is None
    assert not measured
    engine = Engine.load(store, EngineConfig(device="cpu", forecast=True))
    assert len(measured) == 1
    expected = engine.forecast(10)
    assert expected is not None
    assert expected.tokens_per_s > 0
    assert expected.hit_rate == 0.0
