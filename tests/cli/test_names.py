"""What people write for a model: addresses of pages, and names that are nearly right."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.conftest import Cli
from tests.cli.models_support import add_golden, cache
from tests.cli.pull_support import REPO, hub, two_shards
from tests.hub_server import HubServer
from xverse_cli.models.names import hub_id, is_on_modelscope, nearest
from xverse_cli.settings import DEFAULT_MODEL, load_settings

__all__ = ["cache", "hub"]


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("https://huggingface.co/org/x", "org/x"),
        ("https://huggingface.co/org/x/", "org/x"),
        ("http://www.huggingface.co/org/x/tree/main", "org/x"),
        ("https://hf-mirror.com/org/x/tree/v1.0/", "org/x@v1.0"),
        ("hf-mirror.com/org/x?library=y#usage", "org/x"),
        ("https://hf.co/org/x/blob/abc/config.json", "org/x@abc"),
        ("https://huggingface.co/org/x/resolve/abc/config.json?download=true", "org/x@abc"),
        ("https://huggingface.co/org/x/discussions/3", "org/x"),
        ("https://modelscope.cn/models/org/x", "org/x"),
        ("https://www.modelscope.cn/models/org/x/summary", "org/x"),
        ("https://modelscope.cn/models/org/x/files?revision=v2", "org/x@v2"),
        ("https://modelscope.cn/models/org/x/file/view/master/config.json", "org/x"),
        ("https://modelscope.cn/models/org/x/file/view/dev/config.json", "org/x@dev"),
    ],
)
def test_addresses_of_pages(address: str, name: str) -> None:
    assert hub_id(address) == name
    assert is_on_modelscope(address) == ("modelscope" in address)


@pytest.mark.parametrize(
    "other",
    [
        "org/x",
        "org/x@v1",
        "./huggingface.co/org/x",
        "demo",
        "https://github.com/org/x",
        "https://huggingface.co/org",
        "https://huggingface.co/datasets/org/x",
        "https://huggingface.co/org/..%2Fx",
        "http://[::1",
        "C:\\models\\x",
    ],
)
def test_everything_else_stays_as_it_is(other: str) -> None:
    assert hub_id(other) == other


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("dmo", "demo"),
        ("Demo", "demo"),
        ("XVERSE-MoE-A4.2B-Chat", DEFAULT_MODEL),
        ("xverse/xverse-moe-a42b-chat", DEFAULT_MODEL),
        ("xvrese/XVERSE-MoE-A4.2B-Chat@v1", f"{DEFAULT_MODEL}@v1"),
        ("mine/XVERSE-tunde", "mine/XVERSE-tuned"),
        (DEFAULT_MODEL, None),
        ("xverse/XVERSE-MoE-A36B", None),  # another model, and no misspelling
        ("xverse/XVERSE-7B-Chat", None),
        ("llama", None),
    ],
)
def test_close_misspellings(written: str, meant: str | None) -> None:
    assert nearest(written, ["mine/XVERSE-tuned"]) == meant


def test_every_command_takes_an_address(cli: Cli, golden: Path) -> None:
    add_golden(golden)
    address = f"https://hf-mirror.com/{REPO}/tree/main"
    assert cli("show", address, "--json").json["model"] == REPO
    assert cli("verify", address).code == 0
    assert cli("rm", address, "--dry-run", "--json").json["model"] == REPO
    assert load_settings({}, {"XVERSE_MODEL": address}).model == REPO
    assert cli("generate", "hi", "--model", address).code == 0


def test_a_page_of_modelscope_is_fetched_from_there(cli: Cli, hub: HubServer) -> None:
    hub.add_model(REPO, two_shards())
    result = cli("pull", f"https://modelscope.cn/models/{REPO}/summary", "--dry-run", "--json")
    assert (result.code, result.json["source"]) == (0, "modelscope"), result.stderr


def test_the_guess_is_said(cli: Cli, golden: Path) -> None:
    add_golden(golden, "mine/XVERSE-tuned")
    result = cli("show", "mine/XVERSE-tunde")
    assert result.code == 3
    assert "Did you mean mine/XVERSE-tuned?" in result.stderr
    assert "Did you mean" not in cli("show", DEFAULT_MODEL).stderr
    assert f"Did you mean {DEFAULT_MODEL}?" in cli("pull", "XVERSE-MoE-A4.2B-Chat").stderr
