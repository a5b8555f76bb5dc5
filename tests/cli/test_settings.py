"""Flags > environment > file > defaults, and clear errors for what is wrong in any of them."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from xverse_cli.messages import error_text, text
from xverse_cli.settings import (
    DEFAULT_MODEL,
    SETTINGS,
    Settings,
    config_file,
    debug,
    language,
    load_settings,
    misspelt_variables,
    state_dir,
    variable,
)
from xverse_runtime.errors import UsageError


def write_config(tmp_path: Path, content: str) -> dict[str, str]:
    path = tmp_path / "config.toml"
    path.write_text(content, encoding="utf-8")
    return {"XVERSE_CONFIG": str(path)}


def failure(flags: dict[str, object], environ: dict[str, str]) -> str:
    with pytest.raises(UsageError) as caught:
        load_settings(flags, environ)
    return " ".join(error_text(caught.value))


def test_the_table_and_the_fields_agree() -> None:
    assert [field.name for field in fields(Settings)] == list(SETTINGS)


def test_defaults() -> None:
    assert load_settings({}, {}) == Settings(model=DEFAULT_MODEL, device="auto", precision="auto")


VALUES: dict[str, tuple[str, Any]] = {
    "model": ("demo", "demo"),
    "device": ("cpu", "cpu"),
    "precision": ("bf16", "bf16"),
    "context": ("512", 512),
    "chat_template": ("raw", "raw"),
    "kv": ("int8", "int8"),
    "threads": ("2", 2),
    "backend": ("reference", "reference"),
    "cuda_graph": ("false", False),
    "lookup": ("false", False),
    "gpu_memory": ("6GiB", 6 * 2**30),
    "cpu_memory": ("1.5 GB", 1_500_000_000),
    "markdown": ("false", False),
    "system": ("简短。", "简短。"),
    "temperature": ("0.25", 0.25),
    "top_k": ("0", 0),
    "top_p": ("1", 1.0),
    "min_p": ("0", 0.0),
    "repetition_penalty": ("1.1", 1.1),
    "max_tokens": ("7", 7),
    "seed": ("0", 0),
    "overflow": ("summarise", "summarise"),
    "editing": ("vi", "vi"),
    "save": ("false", False),
}


@pytest.mark.parametrize("key", SETTINGS)
def test_every_setting_from_every_layer(key: str, tmp_path: Path) -> None:
    written, value = VALUES[key]
    quoted = written if written.replace(".", "").isdigit() or written == "false" else f'"{written}"'
    environ = write_config(tmp_path, f"{key} = {quoted}\n")
    assert getattr(load_settings({}, environ), key) == value
    assert getattr(load_settings({}, {variable(key): written}), key) == value
    assert getattr(load_settings({key: value}, {}), key) == value


def test_a_switch_takes_on_and_off_alone() -> None:
    for word, value in (("on", True), ("OFF", False), ("1", True), ("no", False)):
        assert load_settings({}, {"XVERSE_CUDA_GRAPH": word}).cuda_graph is value
    assert "one of on, off" in failure({}, {"XVERSE_CUDA_GRAPH": "offf"})


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("6GiB", 6 * 2**30),
        ("6g", 6 * 2**30),
        ("6 GB", 6_000_000_000),
        ("512m", 2**29),
        ("0.5GiB", 2**29),
        ("7340032", 7340032),
        ("1 TiB", 2**40),
        ("64kib", 2**16),
    ],
)
def test_amounts_of_memory(written: str, value: int) -> None:
    assert load_settings({}, {"XVERSE_GPU_MEMORY": written}).gpu_memory == value


@pytest.mark.parametrize(
    "written", ["much", "-1", "0", "6 apples", "6GiGB", "1e9", "9" * 30, "GiB"]
)
def test_what_is_no_amount_of_memory(written: str) -> None:
    assert "6GiB" in failure({}, {"XVERSE_GPU_MEMORY": written})


def test_every_backend_can_be_chosen() -> None:
    from xverse_kernels.backend import NAMES

    for name in ("auto", *NAMES):
        assert load_settings({"backend": name}, {}).backend == name
        assert name in text("help.backend")
    assert "one of auto, triton, cpu, reference" in failure({}, {"XVERSE_BACKEND": "cudnn"})


def test_precedence(tmp_path: Path) -> None:
    environ = write_config(tmp_path, "temperature = 0.1\ntop_k = 1\ntop_p = 0.1\n")
    environ |= {"XVERSE_TEMPERATURE": "0.2", "XVERSE_TOP_K": "2"}
    settings = load_settings({"temperature": 0.3, "top_k": None}, environ)
    assert (settings.temperature, settings.top_k, settings.top_p) == (0.3, 2, 0.1)


def test_a_value_that_is_overridden_does_no_harm(tmp_path: Path) -> None:
    environ = write_config(tmp_path, "top_k = -1\ntop_p = 5\n")
    environ |= {"XVERSE_TOP_K": "2", "XVERSE_TEMPERATURE": "hot", "XVERSE_DEVICE": "gpu"}
    settings = load_settings({"temperature": 0.3, "top_p": 0.5, "device": "cpu"}, environ)
    assert (settings.temperature, settings.top_k, settings.top_p) == (0.3, 2, 0.5)
    assert "XVERSE_TEMPERATURE" in failure({"top_p": 0.5, "device": "cpu"}, environ)


def test_a_file_may_begin_with_a_mark(tmp_path: Path) -> None:
    environ = write_config(tmp_path, "\ufeffseed = 4\n")
    assert load_settings({}, environ).seed == 4


def test_an_empty_variable_is_not_set() -> None:
    assert load_settings({}, {"XVERSE_DEVICE": ""}).device == "auto"


def test_flags_that_are_no_settings_are_passed_over() -> None:
    assert load_settings({"raw": True}, {}) == Settings()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("temperature = -1", "a number of at least 0"),
        ("temperature = nan", "a number of at least 0"),
        ("temperature = true", "a number of at least 0"),
        ('top_p = "0"', "a number above 0, at most 1"),
        ("top_p = 1.5", "a number above 0, at most 1"),
        ("top_k = 1.5", "a whole number of at least 0"),
        ("repetition_penalty = 0", "a number above 0"),
        ("max_tokens = 0", "a whole number of at least 1"),
        ("threads = 5000", "a whole number from 1 to 4096"),
        ('device = "gpu"', "one of auto, cpu, cuda"),
        ("model = 1", "a text"),
        ("seed = [1]", "a whole number of at least 0"),
    ],
)
def test_bad_values_in_the_file(tmp_path: Path, line: str, expected: str) -> None:
    environ = write_config(tmp_path, line)
    message = failure({}, environ)
    assert expected in message
    assert line.split()[0] in message
    assert environ["XVERSE_CONFIG"] in message


def test_bad_value_in_the_environment_names_the_variable() -> None:
    message = failure({}, {"XVERSE_TOP_P": "most"})
    assert message.startswith('XVERSE_TOP_P: "most" is not a number above 0, at most 1')


def test_unknown_keys_name_file_and_nearest(tmp_path: Path) -> None:
    environ = write_config(tmp_path, "top-k = 1")
    message = failure({}, environ)
    assert "top-k" in message
    assert environ["XVERSE_CONFIG"] in message
    assert "Did you mean top_k?" in message
    assert "Known keys: model, device" in failure({}, write_config(tmp_path, "zzz = 1"))


def test_a_file_that_is_not_toml_or_not_there(tmp_path: Path) -> None:
    assert "is not valid TOML" in failure({}, write_config(tmp_path, "a = = 1"))
    (tmp_path / "config.toml").write_bytes(b'system = "\xff"')
    named = {"XVERSE_CONFIG": str(tmp_path / "config.toml")}
    assert "is not valid TOML" in failure({}, named)
    assert "no such file" in failure({}, {"XVERSE_CONFIG": str(tmp_path / "none")})
    assert "cannot be read" in failure({}, {"XVERSE_CONFIG": str(tmp_path)})


def test_the_platform_s_own_file(home: Path) -> None:
    path = config_file({})
    assert home in path.parents
    path.parent.mkdir(parents=True)
    path.write_text("seed = 3", encoding="utf-8")
    assert load_settings({}, {}).seed == 3
    assert home in state_dir().parents


def test_language_and_debug() -> None:
    assert language({"LANG": "C"}) == "en"
    assert language({"LANG": "zh_CN.UTF-8"}) == "zh"
    assert language({"LANG": "zh_CN.UTF-8", "LC_MESSAGES": "de_DE"}) == "en"
    assert language({"LANG": "zh_CN.UTF-8", "LC_ALL": "C.UTF-8"}) == "en"
    assert language({"LANG": "zh_CN.UTF-8", "XVERSE_LANG": "en"}) == "en"
    assert language({"XVERSE_LANG": "zh_CN.UTF-8"}) == "zh"
    assert debug({"XVERSE_DEBUG": "1"})
    assert not debug({"XVERSE_DEBUG": "0"})
    assert not debug({})


def test_misspelt_variables() -> None:
    environ = {"XVERSE_TEMPRATURE": "1", "XVERSE_HOME": "x", "XVERSE_LANG": "en", "PATH": ""}
    assert misspelt_variables(environ) == [("XVERSE_TEMPRATURE", "XVERSE_TEMPERATURE")]
