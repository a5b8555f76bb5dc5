"""Which language is used, and what it must not change: JSON, exit codes, replies."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Cli, memory_stream, written
from tests.cli.fake_engine import FakeEngine
from xverse_cli import settings
from xverse_cli.doctor import advice
from xverse_cli.render.columns import columns
from xverse_cli.render.comparison import print_comparison
from xverse_cli.streams import Streams
from xverse_runtime.errors import GenerationError
from xverse_runtime.offload import measure
from xverse_runtime.offload.machines import find_machine

ZH, EN = {"XVERSE_LANG": "zh"}, {"XVERSE_LANG": "en"}


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"XVERSE_LANG": "zh"}, "zh"),
        ({"XVERSE_LANG": "ZH-Hans"}, "zh"),
        ({"XVERSE_LANG": "en", "LANG": "zh_CN.UTF-8"}, "en"),
        ({"XVERSE_LANG": "zh", "LC_ALL": "en_US.UTF-8"}, "zh"),
        ({"XVERSE_LANG": "de", "LANG": "zh_CN"}, "en"),
        ({"XVERSE_LANG": "", "LANG": "zh_CN.UTF-8"}, "zh"),
        ({"LANG": "zh_TW.Big5"}, "zh"),
        ({"LANG": "zh_HK"}, "zh"),
        ({"LANG": "zh_SG.GB2312"}, "zh"),
        ({"LANG": "zh.UTF-8@pinyin"}, "zh"),
        ({"LC_MESSAGES": "zh_CN.UTF-8", "LANG": "en_US.UTF-8"}, "zh"),
        ({"LC_ALL": "C.UTF-8", "LANG": "zh_CN.UTF-8"}, "en"),
        ({"LC_ALL": "", "LC_MESSAGES": "en_GB", "LANG": "zh_CN"}, "en"),
        ({"LC_CTYPE": "zh_CN.UTF-8", "LANG": "en_US"}, "en"),
        ({"LANG": "de_DE.UTF-8"}, "en"),
        ({"LANG": "zha"}, "en"),
        ({"LANG": "POSIX"}, "en"),
    ],
)
def test_the_language(environ: dict[str, str], expected: str) -> None:
    assert settings.language(environ) == expected


@pytest.mark.parametrize(
    ("locale", "expected"),
    [
        ("Chinese (Simplified)_China", "zh"),
        ("zh_CN", "zh"),
        ("English_United States", "en"),
        (None, "en"),
    ],
)
def test_windows_has_no_variables(
    monkeypatch: pytest.MonkeyPatch, locale: str | None, expected: str
) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr("locale.getlocale", lambda: (locale, "936"))
    assert settings.language({}) == expected
    assert settings.language({"XVERSE_LANG": "en"}) == "en"


def test_elsewhere_no_variables_are_english(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    assert settings.language({}) == "en"


def python(code: str, repository: Path, **env: str) -> str:
    paths = [str(repository), str(repository / "runtime"), str(repository / "kernels")]
    return subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {paths}\n{code}"],
        check=True,
        capture_output=True,
        encoding="utf-8",
        timeout=60,
        env={**os.environ, "PYTHONIOENCODING": "utf-8", **env},
    ).stdout


@pytest.mark.parametrize("language", ["en", "zh"])
def test_only_the_language_in_use_is_imported(language: str, repository: Path) -> None:
    code = "from xverse_cli.app import run\nrun(['show'])\nprint(*sys.modules)"
    imported = python(code, repository, XVERSE_LANG=language).split()
    modules = {one.split(".")[2][:2] for one in imported if one.startswith("xverse_cli.messages.")}
    assert language in modules
    assert not modules & ({"en", "zh"} - {language})


def test_help_in_chinese(repository: Path) -> None:
    """Every page: no English sentence is left, and no line is wider than the terminal."""
    code = (
        "import typer\nfrom xverse_cli.app import build_app, run\n"
        "run(['--help'])\n"
        "names = list(typer.main.get_command(build_app()).commands)\n"
        "for name in names: print('=' * 3); run([name, '--help'])"
    )
    first, *pages = python(code, repository, LANG="zh_CN.UTF-8", COLUMNS="80").split("===\n")
    commands = first.partition("命令：\n")[2].partition("\n\n")[0].splitlines()
    assert len(commands) == len(pages) >= 10
    assert all(line.endswith("。") for line in commands)
    assert first.startswith("用法：xverse ")
    for page in (first, *pages):
        assert page.startswith("用法：")
        assert "显示此帮助并退出。" in page
        for english in ("Usage", "Options", "Arguments", "default", "required", "Show "):
            assert english not in page
        for line in page.splitlines():
            assert columns(line) <= 80, line


def test_options_line_up_in_chinese(repository: Path) -> None:
    code = "from xverse_cli.app import run\nrun(['bench', '--help'])"
    page = python(code, repository, XVERSE_LANG="zh", COLUMNS="80")
    rows = page.partition("选项：\n")[2].splitlines()
    assert len(rows) > 15
    for row in rows:
        assert row[32:34] == "  "
        assert row[34] != " "


PROBLEMS = {
    "show --jsn": (
        "没有选项 --jsn。是否想用 --json？",
        "No such option: --jsn. Did you mean --json?",
    ),
    "chat --precison int4": (
        "没有选项 --precison。是否想用 --precision？",
        "No such option: --precison. Did you mean --precision?",
    ),
    "chat --temp 1": (
        "没有选项 --temp。是否想用 --temperature？",
        "No such option: --temp. Did you mean --temperature?",
    ),
    "chat --no-lokup": (
        "没有选项 --no-lokup。是否想用 --no-lookup？",
        "No such option: --no-lokup. Did you mean --no-lookup?",
    ),
    "chat --gpu": (
        "没有选项 --gpu。是否想用 --gpu-memory？",
        "No such option: --gpu. Did you mean --gpu-memory?",
    ),
    "chat --xyz": ("没有选项 --xyz。", "No such option: --xyz."),
    "show": ("缺少参数 MODEL。", "Missing argument MODEL."),
    "sho": ("没有命令 sho。是否想用 show？", "No such command: sho. Did you mean show?"),
    "xyz": ("没有命令 xyz。", "No such command: xyz."),
    "show a b c": ("多余的参数：b c。", "Too many arguments: b c."),
    "chat --model": ("选项 --model 需要一个值。", "Option --model needs a value."),
    "list --json=1": ("选项 --json 不接受值。", "Option --json takes no value."),
    "chat --top-k -1": (
        "--top-k：“-1”无效，应为不小于 0 的整数",
        'Invalid value for --top-k: "-1" is not a whole number of at least 0',
    ),
}


@pytest.mark.parametrize("arguments", PROBLEMS)
def test_command_lines_that_cannot_be_read(arguments: str, cli: Cli) -> None:
    for env, expected in zip((ZH, EN), PROBLEMS[arguments], strict=True):
        result = cli(*arguments.split(), env=env)
        assert result.code == 2
        assert expected in result.stderr.splitlines()[0]
        assert "--help" in result.stderr.splitlines()[1]


def without_timings(reply: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in reply.items() if key != "timings"}


@pytest.mark.parametrize(
    "arguments",
    [
        ("list", "--json"),
        ("show", "demo", "--json"),
        ("doctor", "--gpu", "4060", "--model", settings.DEFAULT_MODEL, "--json"),
        ("generate", "hi", "--json", "--seed", "1"),
    ],
    ids=" ".join,
)
def test_json_is_the_same_in_every_language(arguments: tuple[str, ...], cli: Cli) -> None:
    results = [cli(*arguments, env=env) for env in (EN, ZH)]
    assert [result.code for result in results] == [0, 0]
    objects = [json.loads(result.stdout) for result in results]
    if arguments[0] == "generate":
        objects = [without_timings(one) for one in objects]
    assert objects[0] == objects[1]


def test_notes_in_json_are_english(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = replace(find_machine("4060"), gpu="", vram_total=0, vram_free=0)
    monkeypatch.setattr(measure, "measure_machine", lambda device: machine)
    monkeypatch.setattr(advice, "system_kind", lambda: "windows")
    told = cli("doctor", "--model", "demo", "--json", env=ZH).json["notes"]
    assert told == cli("doctor", "--model", "demo", "--json", env=EN).json["notes"]
    assert told[0].startswith("On Windows")
    shown = cli("doctor", "--model", "demo", env=ZH).stdout.decode()
    assert "在 Windows 上" in shown


@pytest.mark.parametrize(
    ("arguments", "stdin", "code"),
    [
        (("generate", "你好"), b"", 0),
        (("generate",), b"", 2),
        (("chat",), "你好\n再见\n".encode(), 0),
        (("chat", "--model", "no/such"), b"x\n", 3),
        (("generate", "--model", "./nothing", "x"), b"", 3),
        (("generate", "--context", "x", "y"), b"", 2),
        (("generate", "x", "--file", "/nothing"), b"", 2),
    ],
)
def test_replies_and_exit_codes_are_the_same(
    arguments: tuple[str, ...], stdin: bytes, code: int, cli: Cli
) -> None:
    english, chinese = (cli(*arguments, stdin=stdin, env=env) for env in (EN, ZH))
    assert (english.code, chinese.code) == (code, code)
    assert english.stdout == chinese.stdout
    if code:
        assert english.stderr.startswith("error: ")
        assert chinese.stderr.startswith("错误：")


def test_failures_are_told_in_chinese(cli: Cli) -> None:
    engine = FakeEngine(fail=[GenerationError("sampling.non_finite", step=3)])
    result = cli("chat", stdin="一\n二\n".encode(), engine=engine, env=ZH)
    assert result.code == 7
    assert "错误：第 1 行：模型在第 3 个词元处的输出不是数。" in result.stderr


def test_slash_commands_in_chinese(cli: Cli) -> None:
    told = cli("chat", stdin=b"/help\n/hlep\n/clear x\n", env=ZH).stderr.splitlines()
    rows = [line for line in told if line.startswith("  ")]
    assert len(rows) > 8
    starts = {columns(line[: edges(line)[-1] + 2]) for line in rows}
    assert len(starts) == 1  # every explanation begins in the same column
    assert "未知命令：/hlep（是否想用 /help？）" in told
    assert "/clear 不带参数。" in told


def test_tables_line_up_in_chinese(cli: Cli) -> None:
    argv = ("doctor", "--model", settings.DEFAULT_MODEL, "--gpu", "4060")
    shown = cli(*argv, env=ZH).stdout.decode()
    table = shown.split("\n\n")[1].splitlines()[1:]
    starts = {tuple(columns(line[: at + 2]) for at in edges(line)) for line in table}
    assert len(table) == 4
    assert len(starts) == 1
    facts = [
        line for line in cli("show", "demo", env=ZH).stdout.decode().splitlines() if "  " in line
    ]
    assert facts[0].startswith("模型      demo")
    assert facts[5].startswith("隐藏维度  ")


def test_comparisons_line_up_in_chinese() -> None:
    streams = Streams(None, memory_stream(), memory_stream())
    rows = [("保留策略", "未命中", "词元/秒"), ("LRU", "CPU", "9.5"), ("评分窗口", "混合", "14.5")]
    print_comparison(["模拟"], rows, [("评分窗口、混合", 14.5), ("LRU、CPU", 9.5)], [], streams)
    _, table, chart, _ = written(streams.stdout).decode().split("\n\n")
    lines = table.splitlines()
    assert {columns(line) for line in lines} == {columns(lines[0])}  # figures end at the right
    assert {columns(line[: edges(line)[0] + 2]) for line in lines[::2]} == {10}
    assert len({columns(line.partition("#")[0]) for line in chart.splitlines()}) == 1


def edges(line: str) -> list[int]:
    """Where cells of a line end: two spaces, and no third."""
    return [at for at in range(len(line) - 2) if line[at : at + 2] == "  " and line[at + 2] != " "]


def test_settings_in_chinese(cli: Cli, tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text("top_k = -1", encoding="utf-8")
    result = cli("generate", "x", env={**ZH, "XVERSE_CONFIG": str(config)})
    assert "“-1”无效，应为不小于 0 的整数。" in result.stderr
    result = cli("generate", "x", env={**ZH, "XVERSE_TEMPRATURE": "1"})
    assert "没有 XVERSE_TEMPRATURE 这个设置，是否想用 XVERSE_TEMPERATURE？" in result.stderr
