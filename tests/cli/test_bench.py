"""`xverse bench`: the figures it prints follow from one another."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.cli.test_convert import xverse
from tests.runtime.helpers import GOLDEN
from xverse_cli.models.stores import synthetic_path
from xverse_runtime.store import synthetic


def figures(out: str) -> dict[str, float]:
    rows = [re.split(r"  +", line) for line in out.splitlines()]
    return {name: float(value.split()[0]) for name, value in rows if name != "model"}


def test_the_share_is_that_of_the_other_figures() -> None:
    code, out, _ = xverse(
        "bench", "-m", str(GOLDEN / "moe-bin"), "--new-tokens", "8", "--rounds", "2"
    )
    assert code == 0
    shown = figures(out)
    bandwidth = shown["memory read bandwidth"] * 1e9
    used = shown["decode, 8 tokens"] * shown["weights read a token"] * 1e9
    # both factors are printed rounded: 0.00x GB of this small model
    assert shown["share of it in decode"] == pytest.approx(used / bandwidth, abs=0.05)
    assert shown["prefill, 128 tokens"] > 0


def test_a_synthetic_store_is_made_once(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    small = synthetic.A4_2B | {
        "hidden_size": 320,
        "intermediate_size": 96,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "vocab_size": 2050,
    }
    monkeypatch.setitem(synthetic.SHAPES, "a4.2b", small)
    options = ("bench", "--synthetic", "a4.2b", "--rounds", "1", "--new-tokens", "2")
    code, out, err = xverse(*options)
    assert code == 0
    assert "int4" in out
    path = synthetic_path("a4.2b", "int4")
    assert str(path) in err
    made = (path / "xverse.json").stat().st_mtime_ns
    assert xverse(*options, "--prompt-tokens", "5")[0] == 0
    assert (path / "xverse.json").stat().st_mtime_ns == made
    code, _, err = xverse(*options, "--precision", "fp32")
    assert code == 2
    assert "bf16, int8, int4" in err


@pytest.mark.parametrize(
    "options",
    [
        ["--new-tokens", "5000"],
        ["--prompt-tokens", "5000"],
        ["--context", "20", "--prompt-tokens", "11", "--new-tokens", "10"],
    ],
)
def test_what_does_not_fit_the_context_is_not_measured(options: list[str]) -> None:
    code, out, err = xverse("bench", "-m", str(GOLDEN / "moe-bin"), *options)
    assert (code, out) == (6, "")
    assert "--prompt-tokens or --new-tokens" in err


def test_the_whole_context_can_be_measured() -> None:
    options = ("--context", "20", "--prompt-tokens", "10", "--new-tokens", "10", "--rounds", "1")
    assert xverse("bench", "-m", str(GOLDEN / "moe-bin"), *options)[0] == 0


def test_two_models_at_once_are_refused() -> None:
    assert xverse("bench", "-m", "demo", "--synthetic", "a4.2b")[0] == 2


@pytest.mark.parametrize(
    ("rounds", "shown"),
    [
        ((4629.41, 4612.03, 4650.9), "4630 (4610 to 4650)"),
        ((4629.41, 3017.2, 5210.8), "4600 (3000 to 5200)"),
        ((19.23,), "19.2"),
        ((0.7521, 0.7519), "0.752"),
    ],
)
def test_no_more_digits_than_the_rounds_agree_on(rounds: tuple[float, ...], shown: str) -> None:
    from xverse_cli.commands.bench import _measured

    assert _measured(rounds) == shown
