"""Numbers and names no sane file has: each is a typed error that says where it stands."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from tests.runtime.helpers import GOLDEN
from xverse_runtime.config import EngineConfig
from xverse_runtime.engine import Engine
from xverse_runtime.errors import IntegrityError, ModelNotFoundError, UnsupportedModelError
from xverse_runtime.generation_config import GENERATION_CONFIG_FILE
from xverse_runtime.model_dir import ModelDirectory

HUGE = "9" * 400


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return Path(shutil.copytree(GOLDEN / "moe-bin", tmp_path / "model"))


def refused_value(model: Path, file: str, key: str, written: str) -> dict[str, object]:
    """The parameters of the error that ``key: written`` in ``file`` leads to."""
    path = model / file
    data = json.loads(path.read_text(encoding="utf-8"))
    data.pop(key, None)
    text = json.dumps(data)[:-1] + f', "{key}": {written}}}'
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UnsupportedModelError) as caught:
        Engine.load(model, EngineConfig(device="cpu"))
    assert caught.value.code == "config.bad_value"
    assert caught.value.params["path"] == str(path)
    return caught.value.params


@pytest.mark.parametrize("written", [HUGE, "1e308", "1e400", "-1", "NaN", "Infinity", "true"])
@pytest.mark.parametrize("key", ["rope_theta", "rms_norm_eps"])
def test_numbers_of_the_config(model: Path, key: str, written: str) -> None:
    assert refused_value(model, "config.json", key, written)["key"] == key


@pytest.mark.parametrize("factor", [HUGE, "1e308", "NaN", "Infinity", "0.5"])
@pytest.mark.parametrize("kind", ["linear", "dynamic"])
def test_factors_of_rope_scaling(model: Path, kind: str, factor: str) -> None:
    written = f'{{"type": "{kind}", "factor": {factor}}}'
    params = refused_value(model, "config.json", "rope_scaling", written)
    assert params["key"] == "rope_scaling.factor"


def test_the_largest_rope_numbers_still_give_finite_angles(model: Path) -> None:
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    config |= {"rope_theta": 1e12, "rope_scaling": {"type": "dynamic", "factor": 1e6}}
    (model / "config.json").write_text(json.dumps(config), encoding="utf-8")
    engine = Engine.load(model, EngineConfig(device="cpu", context_length=4096))
    for table in engine._decoder._rotary:
        assert table.shape[0] == 4096
        assert table.isfinite().all()


def test_a_dtype_that_is_no_text_is_passed_over(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("xverse_runtime.device.SMALL_MODEL_BYTES", 0)  # look at the published one
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    (model / "config.json").write_text(json.dumps(config | {"torch_dtype": ["bfloat16"]}))
    assert Engine.load(model, EngineConfig(device="cpu")).precision == "bf16"


@pytest.mark.parametrize(
    ("key", "written"),
    [
        ("top_k", "Infinity"),
        ("top_k", "NaN"),
        ("top_k", "2.5"),
        ("top_k", "-1"),
        ("top_k", HUGE),
        ("max_new_tokens", "1e400"),
        ("max_new_tokens", "0"),
        ("temperature", "NaN"),
        ("temperature", "-Infinity"),
        ("temperature", HUGE),
        ("top_p", "0"),
        ("repetition_penalty", "1e400"),
        ("min_p", '"0.1"'),
    ],
)
def test_settings_of_the_publisher(model: Path, key: str, written: str) -> None:
    assert refused_value(model, GENERATION_CONFIG_FILE, key, written)["key"] == key


@pytest.mark.parametrize("name", ["x" * 400, "\ud800", "a\0b", "../x", ""], ids=range(5))
def test_names_that_no_file_has(model: Path, name: str) -> None:
    directory = ModelDirectory.open(model)
    assert not (name and directory.has(name))
    with pytest.raises(IntegrityError) as caught:
        directory.file(name)
    assert caught.value.code in ("path.missing", "path.outside")
    with pytest.raises(ModelNotFoundError):
        ModelDirectory.open(model / (name or "none"))


def test_a_file_that_may_not_be_read(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: not str(path).endswith(".bin"))
    with pytest.raises(IntegrityError) as caught:
        Engine.load(model, EngineConfig(device="cpu"))
    assert caught.value.code == "path.unreadable"
    assert str(caught.value.params["path"]).endswith(".bin")
