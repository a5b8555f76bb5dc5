"""Whether anybody is there at all, found out sooner than a connection for real would give up."""

from __future__ import annotations

import selectors
import socket
import time
from contextlib import ExitStack
from errno import EINPROGRESS, EWOULDBLOCK
from urllib.parse import urlsplit

from xverse_cli.models.download.http import TransientError, proxy_for, reason

_UNDER_WAY = (EINPROGRESS, EWOULDBLOCK, 10035)  # the last is Windows' own
_PORTS = {"http": 80, "https": 443}


def check_reachable(url: str, within_s: float) -> None:
    """Return once an address of the host takes a connection, or refuses it.

    A host that is blocked answers nothing, and has a dozen addresses that would be waited for one
    after the other: here they are tried at the same time. What else may be wrong is left to the
    request to find out, and behind a proxy everything is.

    Raises:
        TransientError: none of them has answered in time, or nobody knows the name.
    """
    parts = urlsplit(url)
    if not parts.hostname or proxy_for(url):
        return
    try:
        port = parts.port or _PORTS.get(parts.scheme, 443)
        found = socket.getaddrinfo(parts.hostname, port, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        if error.errno == socket.EAI_NONAME:
            raise TransientError(reason(error)) from None
        return
    except (OSError, ValueError):
        return
    with ExitStack() as open_ones:
        waiting = open_ones.enter_context(selectors.DefaultSelector())
        for family, kind, protocol, _, address in found:
            try:
                one = open_ones.enter_context(socket.socket(family, kind, protocol))
                one.setblocking(False)
                if one.connect_ex(address) in _UNDER_WAY:
                    waiting.register(one, selectors.EVENT_WRITE)
                    continue
            except OSError:  # a family that this machine does not have
                continue
            return
        if waiting.get_map() and not _answered(waiting, within_s):
            raise TransientError("no connection in time")


def _answered(waiting: selectors.BaseSelector, within_s: float) -> bool:
    """Whether one of the connections under way comes about, or all of them are refused."""
    deadline = time.monotonic() + within_s
    while waiting.get_map():
        left = deadline - time.monotonic()
        ready = waiting.select(left) if left > 0 else []
        if not ready:
            return False
        for key, _ in ready:
            sock = key.fileobj
            assert isinstance(sock, socket.socket)
            if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0:
                return True
            waiting.unregister(sock)
    return True
