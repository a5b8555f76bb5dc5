"""`python -m bench.gpu runtime --kv`: what can be told of it without a GPU."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import bench.gpu.__main__ as command
import bench.gpu.runtime as measurement
from bench.gpu import peer
from bench.gpu.spans import KernelTime, Span, by_kernel
from bench.table import UNFINISHED, Report
from tests.runtime.helpers import GOLDEN, load_decoder
from xverse_runtime.config import ModelConfig
from xverse_runtime.decode_loop import DecodeLoop
from xverse_runtime.kv_cache import KVPool, cache_dtype
from xverse_runtime.model import Decoder
from xverse_runtime.store.precision import PRESETS, bytes_per_token

BANDWIDTH = 1e9
STEP_S = 0.01
GROUPED = "grouped_mm"


def measured(kv: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, list[KVPool]]:
    """A report on a small model, whose steps take no longer than they are said to."""
    decoder, _ = load_decoder(GOLDEN / "moe-gqa")
    pools: list[KVPool] = []

    def small(_: object, __: int, capacity: int, kv: str) -> tuple[Decoder, KVPool, ModelConfig]:
        dtype = cache_dtype(kv, torch.bfloat16)
        pool = KVPool(decoder.config, capacity, dtype, torch.device("cpu"))
        return decoder, pool, decoder.config

    def loop(_: Decoder, pool: KVPool, *__: object) -> DecodeLoop:
        pools.append(pool)
        from xverse_runtime.decoding import TorchSampler

        return DecodeLoop(decoder, pool, TorchSampler(pool.sequences, torch.device("cpu")))

    monkeypatch.setattr(measurement, "random_decoder", small)
    monkeypatch.setattr(measurement, "_loop", loop)
    monkeypatch.setattr(measurement, "read_bandwidth", lambda: BANDWIDTH)
    monkeypatch.setattr(measurement, "decode_seconds", lambda *_: STEP_S)
    for name in ("_profile", "_prefill", "measure_loading"):
        monkeypatch.setattr(measurement, name, lambda *_: None)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    name = command.report_name("runtime", "some-gpu", kv)
    report = Report(name, folder, [])
    measurement.measure_runtime(report, ["bf16"], 2, kv)
    return report.write().read_text(encoding="utf-8"), pools


@pytest.mark.parametrize(
    ("kv", "dtype"),
    [("auto", torch.bfloat16), ("bf16", torch.bfloat16), ("int8", torch.int8)],
)
def test_the_cache_is_the_one_that_was_asked_for(
    kv: str, dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Single sequences and batches; and the bytes of a token are counted as they are kept."""
    text, pools = measured(kv, tmp_path, monkeypatch)
    assert [pool.dtype for pool in pools] == [dtype] * 3
    assert [pool.sequences for pool in pools] == [1, 1, measurement.BATCH]
    config = load_decoder(GOLDEN / "moe-gqa")[0].config
    weights = bytes_per_token(config, PRESETS["bf16"])
    shares = re.findall(r"^(\d+) \| 100.0 \| 10.000 \| ([0-9.]+)%$", text, re.MULTILINE)
    assert [int(context) for context, _ in shares] == [*measurement.CONTEXTS]
    for context, share in shares:
        moved = weights + KVPool.bytes_needed(config, int(context), dtype)
        assert float(share) == pytest.approx(100 * moved / STEP_S / BANDWIDTH, abs=0.051)
    assert f"keys and values in {str(dtype).removeprefix('torch.')}" in text


def test_results_are_named_apart() -> None:
    names = [command.report_name("runtime", "some-gpu", kv) for kv in ("auto", "bf16", "int8")]
    assert names == ["runtime-some-gpu", "runtime-some-gpu-kv-bf16", "runtime-some-gpu-kv-int8"]
    assert command.report_name("peer", "some-gpu", "int8") == "peer-some-gpu"


def test_the_option() -> None:
    parser = command.arguments_parser()
    assert parser.parse_args(["runtime"]).kv == "auto"
    assert parser.parse_args(["runtime", "--kv", "int8"]).kv == "int8"
    with pytest.raises(SystemExit):
        parser.parse_args(["runtime", "--kv", "fp8"])


def test_a_measurement_that_fails_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(report: Report, *_: object) -> None:
        report.table("decoding", ["context", "tokens/s"])
        report.row("0", "325.4")
        raise RuntimeError("no space left for loading")

    monkeypatch.setattr("sys.argv", ["bench.gpu", "runtime", "--output", str(tmp_path)])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(command, "device_slug", lambda: "some-gpu")
    monkeypatch.setattr(command, "heading", lambda *_: ["On some GPU."])
    monkeypatch.setattr(command, "measure_runtime", fails)
    with pytest.raises(RuntimeError):
        command.main()
    file = tmp_path / "runtime-some-gpu.md"
    text = file.read_text(encoding="utf-8")
    assert "On some GPU.\n\n## decoding\n" in text
    assert text.endswith(f"0 | 325.4\n\n{UNFINISHED}\n")
    monkeypatch.setattr(command, "measure_runtime", lambda report, *_: report.say("all of it"))
    command.main()
    assert file.read_text(encoding="utf-8").endswith("all of it\n")


def test_gaps_are_when_nothing_runs() -> None:
    spans = [
        Span(130.0, 140.0, "second(int*)"),
        Span(100.0, 120.0, "first(float)"),
        Span(110.0, 125.0, "second(int*)"),  # overlaps
        Span(112.0, 114.0, "first(double)"),  # inside another
        Span(143.0, 150.0, "third"),
    ]
    assert by_kernel(spans) == [
        KernelTime("second", 2, 25.0, 5.0),
        KernelTime("first", 2, 22.0, 0.0),
        KernelTime("third", 1, 7.0, 3.0),
    ]
    assert by_kernel([]) == []


def test_the_profile_shows_kernels_times_and_gaps(tmp_path: Path) -> None:
    report = Report("profile", tmp_path, [])
    measurement._say_profile(report, [Span(0.0, 10.0, "a"), Span(12.0, 20.0, "b")])
    lines = report.write().read_text(encoding="utf-8").splitlines()
    assert lines[-6:] == [
        "kernel | launches | µs each | µs in all | µs of gaps before it",
        "--- | --- | --- | --- | ---",
        "a | 1 | 10.00 | 10.0 | 0.0",
        "b | 1 | 8.00 | 8.0 | 2.0",
        "first to last | 2 |  | 20.0 | 2.0",
        "sum (kernels overlap) |  |  | 18.0 | ",
    ]


class FakeModel:
    """What of transformers is measured: a token every 10 ms, or an error."""

    device = torch.device("cpu")

    def __init__(self, error: str = "", *, compiles: bool = False) -> None:
        self._error = error
        self._compiles = compiles
        self.asked: list[dict[str, Any]] = []

    def set_experts_implementation(self, name: str) -> None:
        self.experts = name

    def generate(self, ids: torch.Tensor, streamer: Any = None, **options: Any) -> None:
        if self._error:
            raise RuntimeError(self._error)
        self.asked.append({**options, "experts": self.experts})
        if self._compiles:
            torch.compile(torch.neg, backend="eager")(ids)
        for _ in range(1 + options["max_new_tokens"] if streamer else 0):
            streamer.put(ids)
            time.sleep(0.01)


def peer_rows(model: FakeModel, folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(peer, "_ours", lambda *_: None)
    monkeypatch.setattr(peer, "_model", lambda _: model)
    monkeypatch.setattr(peer, "_row", lambda report, name, _: report.row(name, "5.9", "133.0"))
    report = Report("peer", folder, [])
    peer.measure_peer(report, 2)
    return report.write().read_text(encoding="utf-8").splitlines()[-3:]


@pytest.mark.parametrize(("compiles", "said"), [(True, "compiled"), (False, "not compiled")])
def test_the_peer_with_its_own_fastest_settings(
    compiles: bool, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = FakeModel(compiles=compiles)
    *others, row = peer_rows(model, tmp_path, monkeypatch)
    assert others == [f"transformers, experts {one} | 5.9 | 133.0" for one in ("eager", GROUPED)]
    name, rate, prompt = row.split(" | ")
    assert name == f"transformers, experts {GROUPED}, static cache, {said}"
    assert 20 < float(rate) <= 100
    assert prompt == ""
    for asked in model.asked:
        assert (asked["cache_implementation"], asked["experts"]) == ("static", GROUPED)
    assert len(model.asked) == 2  # the first compiles


def test_a_setting_that_the_peer_lacks_is_a_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = "no static cache\n| for this model" + "." * 100
    *_, row = peer_rows(FakeModel(error), tmp_path, monkeypatch)
    assert row.endswith(" | failed: no static cache / for this model" + "." * 48 + " | ")
