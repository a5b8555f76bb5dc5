"""Every kind of error leads to its exit code, a message and what to try next."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.cli.conftest import Cli
from tests.cli.fake_engine import FakeEngine
from xverse_runtime import errors
from xverse_runtime.device import out_of_memory
from xverse_runtime.types import GenerationChunk

BY_KIND = [
    (errors.UsageError("context.too_long", requested=9, maximum=8), 2, "--context 8"),
    (errors.ModelNotFoundError("model.no_config", path="/m"), 3, "no config.json in /m"),
    (errors.IntegrityError("checkpoint.corrupt", path="/m/x", detail="short"), 4, "/m/x"),
    (
        errors.ResourceError(
            "memory.insufficient", needed_bytes=8 * 2**30, free_bytes=2**29, device="cpu"
        ),
        5,
        "8.0 GiB needed, 512.0 MiB free",
    ),
    (
        errors.ContextOverflowError("context.overflow", prompt_tokens=9, context_length=8),
        6,
        "9 tokens; the context holds 8",
    ),
    (errors.UnsupportedModelError("config.missing_key", key="k", path="/m"), 1, "the key k"),
    (errors.DeviceError("device.unavailable", device="cuda", reason="none"), 1, "--device cpu"),
    (errors.GenerationError("sampling.non_finite", step=3), 1, "token 3"),
    (errors.XverseError("something.new", path="/m"), 1, "something.new (path='/m')"),
    (OSError(errno.ENOSPC, "No space left on device", "/m"), 5, "No space left on device: /m"),
    (PermissionError(errno.EACCES, "Permission denied", "/m"), 1, "Permission denied: /m"),
    (MemoryError(), 5, "out of memory"),
]


class Failing(FakeEngine):
    """Raises ``error`` when it is to generate."""

    error: BaseException

    def encode_chat(self, messages: object) -> list[int]:
        raise self.error


def failing(error: BaseException) -> Failing:
    engine = Failing()
    engine.error = error
    return engine


@pytest.mark.parametrize(("error", "code", "said"), BY_KIND, ids=lambda value: repr(value)[:40])
def test_errors(cli: Cli, error: Exception, code: int, said: str) -> None:
    result = cli("generate", "hi", engine=failing(error))
    assert result.code == code
    assert result.stdout == b""
    assert result.stderr.startswith("error: ")
    assert said in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("language", "said", "sentence"),
    [
        (
            "en",
            "Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 79.11 GiB of which",
            "The memory of cuda:0 is full. Needed: 2.5 GiB; free: 1.5 GiB; held by this program:"
            " 70.0 GiB, by drivers and other programs: 7.5 GiB (CUDA out of memory).",
        ),
        ("en", "Tried to allocate 512 bytes. GPU 0", "Needed: 512 bytes; free: 1.5 GiB;"),
        ("en", "CUBLAS_STATUS_ALLOC_FAILED", "Needed: unknown; free: 1.5 GiB;"),
        ("zh", "Tried to allocate 20.00 MiB. GPU 0", "需要：20.0 MiB；可用：1.5 GiB；"),
        ("zh", "", "cuda:0 的内存已满。需要：未知；可用：1.5 GiB；本程序占用：70.0 GiB，"),
    ],
)
def test_a_full_gpu(
    language: str, said: str, sentence: str, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (2**30, 79 * 2**30))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 70 * 2**30 + 2**29)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 70 * 2**30)
    full = torch.OutOfMemoryError(f"CUDA out of memory. {said}")
    error = out_of_memory(torch.device("cuda", 0), full)
    result = cli("generate", "hi", engine=failing(error), env={"XVERSE_LANG": language})
    assert result.code == 5
    assert sentence in " ".join(result.stderr.split())
    assert "--context" in result.stderr


def test_a_full_host_names_what_is_known(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xverse_runtime.device.host_memory", lambda: (2**34, 2**30))
    error = out_of_memory(torch.device("cpu"), torch.OutOfMemoryError("not enough"))
    stderr = " ".join(cli("generate", "hi", engine=failing(error)).stderr.split())
    assert "Needed: unknown; free: 1.0 GiB; held by this program: unknown" in stderr


class FailingLate(FakeEngine):
    def _chunks(self, *arguments: object) -> Iterator[GenerationChunk]:
        yield GenerationChunk("so far")
        raise errors.GenerationError("sampling.non_finite", step=6)


def test_an_error_after_some_text_begins_on_its_own_line(cli: Cli) -> None:
    result = cli("generate", "hi", engine=FailingLate())
    assert (result.code, result.stdout) == (1, b"so far\n")


def test_ctrl_c_outside_a_generation(cli: Cli) -> None:
    result = cli("generate", "hi", engine=failing(KeyboardInterrupt()))
    assert (result.code, result.stderr) == (130, "Interrupted.\n")


def test_closed_pipe_is_quiet(cli: Cli) -> None:
    result = cli("generate", "hi", engine=failing(BrokenPipeError()))
    assert (result.code, result.stderr) == (0, "")


def test_unexpected_errors_are_short(cli: Cli) -> None:
    result = cli("generate", "hi", engine=failing(KeyError("x")))
    assert result.code == 1
    assert "error: unexpected KeyError: 'x'" in result.stderr
    assert "XVERSE_DEBUG=1" in result.stderr
    assert "Traceback" not in result.stderr


def test_traceback_on_request(cli: Cli) -> None:
    engine = failing(KeyError("x"))
    assert "Traceback" in cli("generate", "hi", "-vv", engine=engine).stderr
    assert "Traceback" in cli("generate", "hi", engine=engine, env={"XVERSE_DEBUG": "1"}).stderr
    assert "Traceback" not in cli("generate", "hi", "-v", engine=engine).stderr


def test_errors_cannot_steer_the_terminal(cli: Cli) -> None:
    error = errors.UnsupportedModelError(
        "config.bad_value", key="\x1b[2Jk", value="\x07v", expected="\u202ex"
    )
    stderr = cli("generate", "hi", engine=failing(error)).stderr
    assert "says k = v; expected x." in stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["generate", "x", "--temprature", "1"], "--temperature"),
        (["generate", "x", "--temperature", "hot"], '"hot" is not a number of at least 0'),
        (["generate", "x", "--temperature", "-1"], '"-1" is not a number of at least 0'),
        (["generate", "x", "--top-p", "0"], '"0" is not a number above 0, at most 1'),
        (["generate", "x", "--device", "gpu"], "one of auto, cpu, cuda"),
        (["generate", "x", "--max-tokens", "1.5"], "a whole number of at least 1"),
        (["generate", "x", "--stop", ""], "at least one character"),
        (["generate", "x", "--logprobs", "-1", "--json"], "a whole number of at least 0"),
        (["generate", "x", "--logprobs", "1"], "Add --json"),
        (["generate", "x", "--raw", "--system", "y"], "--system has no meaning with --raw"),
        (["generate", "x", "--seed"], "--seed"),
        (["chat", "surplus"], "surplus"),
        (["chat", "--model", ""], "at least one character"),
        (["generat"], "generate"),
        (["--nonsense"], "--nonsense"),
    ],
)
def test_usage_errors(cli: Cli, arguments: list[str], said: str) -> None:
    result = cli(*arguments)
    assert (result.code, result.stdout) == (2, b"")
    assert result.stderr.startswith("error: ")
    assert said in result.stderr
    assert result.settings is None


def test_usage_errors_name_the_help_of_their_command(cli: Cli) -> None:
    assert "xverse generate --help" in cli("generate", "--nonsense").stderr
    assert "xverse --help" in cli("nonsense").stderr


def test_settings_errors(cli: Cli, tmp_path: Path) -> None:
    assert cli("generate", "x", env={"XVERSE_SEED": "-3"}).code == 2
    assert cli("generate", "x", env={"XVERSE_CONFIG": str(tmp_path / "none")}).code == 2


def test_misspelt_variable_is_warned_of(cli: Cli) -> None:
    result = cli("generate", "x", env={"XVERSE_TEMPRATURE": "0"})
    assert result.code == 0
    assert "did you mean XVERSE_TEMPERATURE?" in result.stderr
