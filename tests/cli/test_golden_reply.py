"""`xverse generate` with the real engine gives the ids that the vendor's code gave."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from tests.cli.conftest import memory_stream, written
from xverse_cli.app import run
from xverse_cli.host import Host
from xverse_cli.streams import Streams


@pytest.mark.parametrize(
    ("checkpoint", "penalty"), [("moe-bin", "1.1"), ("moe-gqa", "1.3"), ("moe-safetensors", "1.0")]
)
def test_greedy_ids(golden: Path, checkpoint: str, penalty: str) -> None:
    cases = json.loads((golden / checkpoint / "expected.json").read_text(encoding="utf-8"))
    options = "--device cpu --precision fp32 --raw --json --temperature 0 --max-tokens 24"
    for case in cases:
        streams = Streams(memory_stream(), memory_stream(), memory_stream())
        argv = ["generate", "--model", str(golden / checkpoint), *options.split()]
        code = run([*argv, "--repetition-penalty", penalty, "--", case["text"]], Host(streams, {}))
        assert code == 0, written(streams.stderr)
        value = json.loads(written(streams.stdout))
        assert value["prompt_token_ids"] == case["prompt_token_ids"]
        assert value["token_ids"] == case["greedy"][penalty]["token_ids"]
        assert value["usage"]["completion_tokens"] == len(value["token_ids"])
        assert value["settings"]["repetition_penalty"] == float(penalty)


def test_logprobs_of_the_real_engine(golden: Path) -> None:
    streams = Streams(memory_stream(), memory_stream(), memory_stream())
    argv = ["generate", "x", "--model", str(golden / "moe-bin"), "--raw", "--json"]
    argv += ["--logprobs", "3", "--max-tokens", "2", "--temperature", "0"]
    assert run(argv, Host(streams, {})) == 0
    value = json.loads(written(streams.stdout))
    assert len(value["logprobs"]) == len(value["token_ids"])
    for entry, token in zip(value["logprobs"], value["token_ids"], strict=True):
        assert entry["token_id"] == token == entry["top"][0]["token_id"]
        assert entry["logprob"] == entry["top"][0]["logprob"] <= 0
        assert len(entry["top"]) == 3


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--context", "999999"], 2, "--context"),
        (["--context", "4"], 6, "the context holds 4"),
        (["--precision", "int4"], 2, "int4"),
        (["--chat-template", "nonsense"], 2, "human-assistant, system-user-assistant, raw"),
    ],
)
def test_errors_of_the_real_engine(
    golden: Path, arguments: list[str], code: int, said: str
) -> None:
    streams = Streams(io.TextIOWrapper(io.BytesIO()), memory_stream(), memory_stream())
    argv = ["generate", "some words here", "--model", str(golden / "moe-bin"), *arguments]
    result = run(argv, Host(streams, {}))
    stderr = written(streams.stderr).decode()
    assert result == code, stderr
    assert said in stderr
    assert "unexpected" not in stderr
