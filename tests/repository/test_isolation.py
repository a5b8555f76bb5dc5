"""The walls that `tests/conftest.py` puts around every test hold."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize("address", [("192.0.2.1", 80), ("example.invalid", 443)])
def test_network_is_refused(address: tuple[str, int]) -> None:
    with pytest.raises(RuntimeError, match=address[0]):
        socket.create_connection(address, timeout=1)


def test_datagrams_are_refused() -> None:
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
        pytest.raises(RuntimeError, match=r"192\.0\.2\.1"),
    ):
        sender.sendto(b"x", ("192.0.2.1", 9))


def test_loopback_is_allowed() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname(), timeout=5).close()


def test_home_is_empty_and_inherited(home: Path) -> None:
    assert list(home.iterdir()) == []
    probe = "import os, pathlib; print(pathlib.Path.home(), os.environ['HF_HUB_OFFLINE'])"
    result = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True)
    assert result.stdout.split() == [str(home), "1"]


def test_no_personal_settings() -> None:
    assert not [name for name in os.environ if name.startswith("XVERSE_")]
