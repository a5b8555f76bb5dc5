"""How a prompt is put together from arguments, files and standard input."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.conftest import Cli


@pytest.mark.parametrize(
    ("arguments", "stdin", "prompt"),
    [
        (["question"], b"", "question"),
        (["question"], b"data\n", "question\n\ndata"),
        (["question"], b"data\r\n", "question\n\ndata"),
        (["question"], b"data\n\n", "question\n\ndata\n"),
        ([], b"data", "data"),
        (["-"], b"data", "data"),
        (["-", "question"], b"data\n", "data\n\nquestion"),
        (["one", "-", "two"], b"data", "one\n\ndata\n\ntwo"),
        (["one", "two"], b"", "one\n\ntwo"),
        (["question", "-"], b"", "question"),
        ([""], b"data", "data"),
        (["question"], "\ufeff数据\n".encode(), "question\n\n数据"),
        (["--", "--not-an-option"], b"", "--not-an-option"),
    ],
)
def test_joining(cli: Cli, arguments: list[str], stdin: bytes, prompt: str) -> None:
    assert cli("generate", "--raw", *arguments, stdin=stdin).engine.prompts == [prompt]


def test_files_stand_between_arguments_and_stdin(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "a").write_text("file a\n", encoding="utf-8")
    (tmp_path / "b").write_text("file b", encoding="utf-8")
    files = ["--file", str(tmp_path / "a"), "-f", str(tmp_path / "b")]
    result = cli("generate", "--raw", "question", *files, stdin=b"data")
    assert result.engine.prompts == ["question\n\nfile a\n\nfile b\n\ndata"]


def test_a_terminal_is_not_read(cli: Cli) -> None:
    result = cli("generate", "--raw", "question", stdin=b"never read", terminal="i")
    assert result.engine.prompts == ["question"]


def test_a_terminal_is_read_when_asked_for(cli: Cli) -> None:
    result = cli("generate", "--raw", "-", stdin=b"typed", terminal="i")
    assert result.engine.prompts == ["typed"]
    assert "Waiting for text" in result.stderr


def test_closed_stdin_is_no_prompt_part(cli: Cli) -> None:
    assert cli("generate", "--raw", "question", stdin=None).engine.prompts == ["question"]


@pytest.mark.parametrize(
    ("arguments", "stdin"), [([], b""), ([""], b""), ([" \n"], b""), (["-"], b"\n"), ([], None)]
)
def test_no_prompt_is_a_usage_error(cli: Cli, arguments: list[str], stdin: bytes | None) -> None:
    result = cli("generate", *arguments, stdin=stdin)
    assert result.code == 2
    assert "There is no prompt." in result.stderr
    assert "echo" in result.stderr


def test_invalid_utf8_on_stdin_names_the_byte(cli: Cli) -> None:
    result = cli("generate", stdin="中文".encode() + b"\xff")
    assert (result.code, result.stdout) == (2, b"")
    assert "Standard input is not UTF-8 text: byte 6 is wrong." in result.stderr


def test_invalid_utf8_in_a_file_names_file_and_byte(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "latin").write_bytes(b"caf\xe9")
    result = cli("generate", "--file", str(tmp_path / "latin"))
    assert result.code == 2
    assert f"{tmp_path / 'latin'} is not UTF-8 text: byte 3 is wrong." in result.stderr


def test_invalid_utf8_in_an_argument(cli: Cli) -> None:
    result = cli("generate", "a\udcff")
    assert result.code == 2
    assert "The prompt is not UTF-8 text: byte 1 is wrong." in result.stderr


def test_missing_file(cli: Cli, tmp_path: Path) -> None:
    result = cli("generate", "hi", "--file", str(tmp_path / "none"))
    assert result.code == 2
    assert "none cannot be read: No such file" in result.stderr


def test_two_dashes(cli: Cli) -> None:
    assert cli("generate", "-", "-", stdin=b"x").code == 2


def test_bad_input_is_reported_before_the_model_is_loaded(cli: Cli) -> None:
    assert cli("generate", stdin=b"\xff").settings is None
