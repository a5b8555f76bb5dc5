"""What every test runs under: a home of its own, no network, nobody's settings."""

from __future__ import annotations

import gc
import os
import shutil
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent

# Read by programs while they are imported or started, so they are set before any test module is.
_OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HTTP_PROXY": "http://127.0.0.1:9",  # nothing listens there: child processes fail at once
    "HTTPS_PROXY": "http://127.0.0.1:9",
    "NO_PROXY": "localhost,127.0.0.1,::1",
}
_PERSONAL = ("XVERSE_", "HF_", "HUGGINGFACE_", "XDG_", "CLICOLOR", "PYTEST_ADDOPTS", "LC_", "LANG")
_PERSONAL_NAMES = {"NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES", "PAGER", "EDITOR", "VISUAL"}
_ENGLISH = {"LANG": "C.UTF-8"}  # whatever the developer's language


def _home_environment(home: Path) -> dict[str, str]:
    return {
        "HOME": str(home),
        "USERPROFILE": str(home),
        "APPDATA": str(home / "appdata"),
        "LOCALAPPDATA": str(home / "appdata"),
        "XDG_CONFIG_HOME": str(home / ".config"),
        "XDG_CACHE_HOME": str(home / ".cache"),
        "XDG_DATA_HOME": str(home / ".local" / "share"),
        "XDG_STATE_HOME": str(home / ".local" / "state"),
        "HF_HOME": str(home / ".cache" / "huggingface"),
    }


for _name in list(os.environ):
    if _name.startswith(_PERSONAL) or _name in _PERSONAL_NAMES or _name.lower().endswith("_proxy"):
        del os.environ[_name]
_SESSION_HOME = Path(tempfile.mkdtemp(prefix="xverse-tests-"))
os.environ.update(_OFFLINE | _ENGLISH)
# The test models are tiny: on busy cores a second thread is waited for much longer than it works.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# One order of summation on every x86 machine; why it matters: tests/runtime/test_parity.py.
os.environ.setdefault("MKL_CBWR", "AVX2")
os.environ.update(_home_environment(_SESSION_HOME))


def pytest_collection_finish() -> None:
    """All modules of the tests are there to stay: later looks for garbage pass them over."""
    gc.collect()
    gc.freeze()


def pytest_addoption(parser: pytest.Parser) -> None:
    """A plain checkout on a GPU machine may lack pytest-timeout: its setting is then no error."""
    if find_spec("pytest_timeout") is None:
        parser.addini("timeout", "seconds that a test may take; nobody counts them here")


def pytest_unconfigure() -> None:
    shutil.rmtree(_SESSION_HOME, ignore_errors=True)


class NetworkForbiddenError(RuntimeError):
    """A test tried to reach something beyond this machine."""


def _is_local(host: object) -> bool:
    if isinstance(host, bytes):
        host = host.decode("ascii", "replace")
    return host in (None, "", "localhost", "::1", "0.0.0.0", "::") or (
        isinstance(host, str) and host.startswith("127.")
    )


def _forbid_network(event: str, args: tuple[object, ...]) -> None:
    if event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
        address = args[1]
        if isinstance(address, tuple) and not _is_local(address[0]):
            raise NetworkForbiddenError(f"{event} {address!r}")
    elif event in ("socket.getaddrinfo", "socket.gethostbyname") and not _is_local(args[0]):
        raise NetworkForbiddenError(f"{event} {args[0]!r}")


sys.addaudithook(_forbid_network)


@pytest.fixture(autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home directory for this test and the programs it starts."""
    folder = tmp_path_factory.mktemp("home")
    for name, value in _home_environment(folder).items():
        monkeypatch.setenv(name, value)
    return folder


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def golden() -> Path:
    """Small checkpoints with the logits and texts that the vendor's code gave for them."""
    return REPOSITORY / "tests" / "golden"


@pytest.fixture(scope="session")
def demo_dir() -> Path:
    """The demo model's directory."""
    return REPOSITORY / "runtime" / "xverse_runtime" / "demo"
