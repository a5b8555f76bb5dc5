"""Where the Hub is blocked, or there is no network at all: soon told, once, and what to do."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import pytest

from tests.cli.conftest import Cli
from tests.cli.pull_support import HURRIED, REPO, hub, two_shards
from tests.hub_server import HubServer
from xverse_cli.models import pull, pull_flow
from xverse_cli.models.download.http import TransientError
from xverse_cli.models.download.reach import check_reachable

__all__ = ["hub"]

ACCEPT = "--accept-license"
HUB = "https://hub.test"


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "hub.test,localhost,127.0.0.1,::1")


@contextmanager
def silent_port() -> Iterator[int]:
    """A port that answers nothing, as one does behind a firewall: its queue is full."""
    with ExitStack() as open_ones:
        server = open_ones.enter_context(socket.socket())
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        port = int(server.getsockname()[1])
        for _ in range(8):
            one = open_ones.enter_context(socket.socket())
            one.setblocking(False)
            one.connect_ex(("127.0.0.1", port))
        yield port


def test_all_addresses_of_a_silent_host_are_tried_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with silent_port() as port:
        address = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [address] * 12)
        started = time.monotonic()
        with pytest.raises(TransientError, match="no connection in time"):
            check_reachable(HUB, 0.4)
        assert 0.3 < time.monotonic() - started < 2


def test_one_address_that_answers_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    with silent_port() as silent, socket.socket() as there:
        there.bind(("127.0.0.1", 0))
        there.listen(8)
        places = [("127.0.0.1", silent), there.getsockname()]
        found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", place) for place in places]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
        started = time.monotonic()
        check_reachable(HUB, 30)
        assert time.monotonic() - started < 5


def test_a_refusal_and_a_proxy_are_left_to_the_request(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        check_reachable(f"http://127.0.0.1:{closed.getsockname()[1]}", 5)
    with silent_port() as port:
        monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
        monkeypatch.setenv("NO_PROXY", "")
        monkeypatch.setenv("no_proxy", "")
        check_reachable(f"http://127.0.0.1:{port}", 0.2)


def test_a_name_that_nobody_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(TransientError, match=r"^Name or service not known$"):
        check_reachable(HUB, 5)


def test_a_blocked_hub_is_given_up_soon_and_said_to_be_asked(
    cli: Cli, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add_model(REPO, two_shards())
    monkeypatch.setattr(pull_flow, "SLOW_S", 0.1)
    monkeypatch.setattr(pull, "PATIENCE", replace(HURRIED, ask_s=0.6, connect_s=60, stall_s=60))
    with silent_port() as port:
        blocked = f"http://127.0.0.1:{port}"
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", blocked)
        started = time.monotonic()
        result = cli("pull", REPO, ACCEPT)
        assert time.monotonic() - started < 20
    assert result.code == 0, result.stderr
    waiting, passed_over = result.stderr.splitlines()[:2]
    assert waiting.startswith(f"Waiting for {blocked} to answer about {REPO}")
    assert "HF_ENDPOINT=https://MIRROR" in waiting
    assert "--source modelscope" in waiting
    assert passed_over == (
        f"huggingface ({blocked}) cannot be used: no connection in time. Trying modelscope."
    )


@pytest.mark.parametrize("command", [("pull", REPO, ACCEPT), ("generate", "hi", "-m", REPO)])
def test_without_a_network_nothing_is_said_twice(
    cli: Cli, hub: HubServer, command: tuple[str, ...]
) -> None:
    hub.faults.down = ("hub", "modelscope")
    result = cli(*command, stdin=b"y\n", terminal="ie")
    assert result.code == 3
    assert "Errno" not in result.stderr
    told = " ".join(result.stderr.split())
    assert told.count(f"{hub.url} cannot be reached either: ") == 1
    assert told.count("cannot be reached") == 1
    assert told.count("cannot be used") == 1
    assert told.count("is not on this machine") == (command[0] == "generate")
    assert "HF_ENDPOINT=https://MIRROR" in told


def test_offline_by_wish_is_said_once(
    cli: Cli, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    result = cli("generate", "hi", "-m", REPO, stdin=b"y\n", terminal="ie")
    assert result.code == 3
    assert result.stderr.count("is not on this machine") == 1
    assert "Unset HF_HUB_OFFLINE" in result.stderr
