"""`xverse generate`: what it prints, and what it asks of the model."""

from __future__ import annotations

import json

import pytest

from tests.cli.conftest import Cli
from tests.cli.fake_engine import FakeEngine
from xverse_cli.json_output import to_json
from xverse_runtime.types import SamplingParams


def test_stdout_is_the_reply_and_one_newline(cli: Cli) -> None:
    result = cli("generate", "hi")
    assert (result.code, result.stdout, result.stderr) == (0, b"Hello there.\n", "")


@pytest.mark.parametrize(("reply", "expected"), [("a\n", "a\n"), ("a\n\n", "a\n\n"), ("", "\n")])
def test_a_newline_is_only_added_where_it_is_missing(cli: Cli, reply: str, expected: str) -> None:
    assert cli("generate", "hi", engine=FakeEngine([reply])).stdout == expected.encode()


def test_a_pipe_gets_the_text_unaltered(cli: Cli) -> None:
    reply = "中\x1b[31m\x07\x9b\u202e\r\n"
    assert cli("generate", "hi", engine=FakeEngine([reply])).stdout == reply.encode()


def test_a_terminal_gets_no_control_characters(cli: Cli) -> None:
    engine = FakeEngine(["中\x1b[2Jok\x1b]0;title\x07\u202e!"])
    assert cli("generate", "hi", engine=engine, terminal="o").stdout == "中ok!\n".encode()


def test_chat_format_and_system_message(cli: Cli) -> None:
    engine = cli("generate", "hi", "--system", "Be brief.").engine
    assert engine.prompts == ["system: Be brief.\nuser: hi\nassistant: "]


def test_raw_goes_to_the_model_as_it_is(cli: Cli) -> None:
    assert cli("generate", "--raw", "北京的景点：").engine.prompts == ["北京的景点："]


def test_raw_leaves_out_a_system_message_from_the_environment(cli: Cli) -> None:
    result = cli("generate", "--raw", "hi", env={"XVERSE_SYSTEM": "Be brief."})
    assert result.engine.prompts == ["hi"]


def test_sampling_defaults_are_the_models(cli: Cli) -> None:
    engine = cli("generate", "hi").engine
    assert engine.params == [engine.default_sampling]


def test_sampling_options(cli: Cli) -> None:
    options = "--temperature 0 --top-k 5 --top-p 0.5 --min-p 0.1 --repetition-penalty 1.2"
    more = "--max-tokens 3 --seed 11 --logprobs 2 --json --stop A --stop"
    engine = cli("generate", "hi", *options.split(), *more.split(), r"\n\\n").engine
    assert engine.params == [
        SamplingParams(0.0, 5, 0.5, 0.1, 1.2, 3, 11, stop=("A", "\n\\n"), logprobs=2)
    ]


def test_engine_options(cli: Cli) -> None:
    options = "--device CPU --precision fp32 --context 99 --chat-template raw --threads 2"
    options += " --kv int8"
    settings = cli("generate", "hi", *options.split()).settings
    assert settings is not None
    assert (settings.device, settings.precision, settings.context) == ("cpu", "fp32", 99)
    assert (settings.chat_template, settings.threads, settings.kv) == ("raw", 2, "int8")
    assert settings.lookup
    settings = cli("generate", "hi", "--no-lookup").settings
    assert settings is not None
    assert not settings.lookup


def test_json_object(cli: Cli) -> None:
    result = cli("generate", "hi", "--json", "--seed", "5", "--device", "cpu")
    assert result.stdout.endswith(b"}\n")
    assert result.stdout.count(b"\n") == 1
    value = result.json
    value["timings"].pop("load_s")
    assert value == {
        "model": "fake",
        "text": "Hello there.",
        "finish_reason": "stop",
        "prompt_token_ids": [ord(one) for one in "user: hi\nassistant: "],
        "token_ids": [ord(one) for one in "Hello there."],
        "usage": {"prompt_tokens": 20, "completion_tokens": 12, "cached_tokens": 3},
        "timings": {"ttft_s": 0.25, "prefill_tokens_per_s": 100.0, "decode_tokens_per_s": 20.0},
        "settings": {
            "temperature": 0.5,
            "top_k": 30,
            "top_p": 1.0,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "max_tokens": 100,
            "seed": 5,
            "stop": [],
            "device": "imaginary:0",
            "precision": "bf16",
            "chat_template": "human-assistant",
        },
        "truncated": False,
    }


def test_json_reports_a_drawn_seed(cli: Cli) -> None:
    assert cli("generate", "hi", "--json").json["settings"]["seed"] == 7


def test_json_logprobs(cli: Cli) -> None:
    value = cli("generate", "hi", "--json", "--logprobs", "1", "--max-tokens", "1").json
    assert value["logprobs"] == [
        {"token_id": ord("H"), "logprob": -0.5, "top": [{"token_id": 0, "logprob": -1.0}]}
    ]
    assert value["finish_reason"] == "length"


def test_json_keeps_every_character_and_cannot_steer_a_terminal(cli: Cli) -> None:
    reply = "中\x1b[2J\x9b1m\x7f\u202e\u2066"
    result = cli("generate", "hi", "--json", engine=FakeEngine([reply]), terminal="o")
    assert result.json["text"] == reply
    assert "中" in result.stdout.decode()
    assert not {"\x1b", "\x9b", "\x7f", "\u202e", "\u2066"} & set(result.stdout.decode())


def test_json_is_strict() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        to_json(float("nan"))
    assert json.loads(to_json({"a": "\ud800"})) == {"a": "\ud800"}


def test_a_full_context_is_said_and_marked(cli: Cli) -> None:
    result = cli("generate", "hi", "--json", engine=FakeEngine(context_length=24))
    assert result.json["truncated"] is True
    assert result.json["finish_reason"] == "length"
    assert "the context of 24 tokens is full" in result.stderr


def test_a_limit_the_user_did_not_choose_is_said(cli: Cli) -> None:
    long = "x" * 200
    assert "ended after 100 tokens" in cli("generate", "hi", engine=FakeEngine([long])).stderr
    chosen = cli("generate", "hi", "--max-tokens", "5", engine=FakeEngine([long]))
    assert (chosen.stdout, chosen.stderr) == (b"xxxxx\n", "")


def test_verbose_explains_on_stderr(cli: Cli) -> None:
    result = cli("generate", "hi", "-v")
    assert result.stdout == b"Hello there.\n"
    assert "Chat template: human-assistant (assumed because fake" in result.stderr
    assert "device: imaginary" in result.stderr
    assert "12 tokens, 20.0 tokens/s · first after 0.25 s" in result.stderr


def test_quiet_says_nothing(cli: Cli) -> None:
    result = cli("generate", "hi", "-q", "-v", engine=FakeEngine(context_length=24))
    assert result.stderr == ""


def test_loading_is_shown_where_someone_is_watching(cli: Cli) -> None:
    assert "Loading" in cli("generate", "hi", terminal="e").stderr
    assert cli("generate", "hi", "-q", terminal="e").stderr == ""
