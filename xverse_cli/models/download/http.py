"""HTTP for large files: connections, proxies, redirects, and what an answer means.

urllib3 does the protocol. Redirects are followed here, because credentials must stay with the
host they are for.
"""

from __future__ import annotations

import re
import socket
import time
import urllib.request
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from importlib.util import find_spec
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit

import urllib3

from xverse_runtime.errors import UsageError

MAX_REDIRECTS = 10
SMALL_BODY = 2**16
_CONTENT_RANGE = re.compile(r"bytes (?P<start>\d+)-(?P<end>\d+)/(?P<total>\d+|\*)")
_REDIRECTS = (301, 302, 303, 307, 308)
_BUSY = (408, 425, 429, 500, 502, 503, 504, 520, 522, 524)


class TransientError(Exception):
    """Worth another try: no connection, silence, or a server that is busy.

    Args:
        reason: in words, for the user.
        retry_after: seconds that the server asks to wait.
        reached: whether a server answered.
    """

    def __init__(
        self, reason: str, retry_after: float | None = None, *, reached: bool = False
    ) -> None:
        super().__init__(reason)
        self.retry_after = retry_after
        self.reached = reached


class StatusError(Exception):
    """An answer that another try would not change; ``redirected``: by a host we were sent to."""

    def __init__(self, status: int, url: str, *, redirected: bool) -> None:
        super().__init__(f"HTTP {status}")
        self.status = status
        self.host = urlsplit(url).netloc
        self.redirected = redirected


@dataclass(eq=False)
class Body:
    """The bytes from ``start`` on, of ``total`` (``None``: not told); ``headers`` of every hop.

    ``partial`` when the server answered the range that was asked for.
    """

    response: Any
    start: int
    total: int | None
    headers: dict[str, str]
    url: str
    partial: bool

    def read(self, most: int) -> bytes:
        """What has arrived, up to ``most`` bytes; empty at the end of the body.

        Raises:
            TransientError: the connection broke or fell silent.
        """
        try:
            data: bytes = self.response.read1(most)
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            raise TransientError(reason(error), reached=True) from None
        return data

    def abort(self) -> None:
        """Wake a thread that waits for bytes."""
        connection = getattr(self.response, "connection", None)
        if (sock := getattr(connection, "sock", None)) is not None:
            with suppress(OSError, AttributeError):
                sock.shutdown(socket.SHUT_RDWR)

    def close(self, *, reusable: bool = False) -> None:
        """Give the connection back where the body was read to its end, else close it."""
        if reusable:
            self.response.release_conn()
        else:
            self.response.close()


class Connections:
    """Keeps connections to hosts open; used by several threads.

    Args:
        connect_s: seconds to wait for a connection.
        stall_s: seconds without a byte after which a connection counts as stalled.
        receive_buffer: bytes of the socket's buffer; ``None`` leaves it to the system, which
            makes it as large as the line needs.
    """

    def __init__(
        self, connect_s: float = 15, stall_s: float = 30, receive_buffer: int | None = None
    ) -> None:
        self._timeout = urllib3.Timeout(connect=connect_s, read=stall_s)
        options = [*urllib3.connection.HTTPConnection.default_socket_options]
        if receive_buffer is not None:
            options.append((socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer))
        self._options: dict[str, Any] = {
            "maxsize": 32,
            "socket_options": options,
            "retries": False,
            "timeout": self._timeout,
        }
        self._managers: dict[str, Any] = {}

    def get(
        self, url: str, headers: Mapping[str, str], start: int = 0, end: int | None = None
    ) -> Body:
        """Ask for bytes ``start`` to ``end`` (exclusive; ``None``: all of it).

        A server may ignore the range: then ``Body.start`` is 0.

        Raises:
            TransientError, StatusError
        """
        wanted = {"Accept-Encoding": "identity", "User-Agent": "xverse", **headers}
        if end is not None:
            wanted["Range"] = f"bytes={start}-{end - 1}"
        first, seen = urlsplit(url), dict[str, str]()
        for _ in range(MAX_REDIRECTS):
            response = self._request(url, wanted)
            seen |= {key.lower(): value for key, value in response.headers.items()}
            if response.status in _REDIRECTS and "location" in response.headers:
                target = urljoin(url, response.headers["location"])
                _finish(response)
                if origin(target) != origin(url):
                    wanted = {k: v for k, v in wanted.items() if k.lower() not in _SECRET}
                url = target
                continue
            return _checked(response, url, seen, start, redirected=urlsplit(url) != first)
        raise TransientError("too many redirects", reached=True)

    def _request(self, url: str, headers: Mapping[str, str]) -> Any:
        try:
            return self._manager(url).request(
                "GET", url, headers=headers, redirect=False, preload_content=False
            )
        except urllib3.exceptions.HTTPError as error:
            raise TransientError(reason(error)) from None
        except (OSError, ValueError) as error:
            raise TransientError(str(error) or type(error).__name__) from None

    def _manager(self, url: str) -> Any:
        proxy = proxy_for(url) or ""
        if proxy not in self._managers:
            self._managers[proxy] = _new_manager(proxy, self._options)
        return self._managers[proxy]

    def close(self) -> None:
        for manager in self._managers.values():
            manager.clear()


_SECRET = ("authorization", "cookie", "proxy-authorization")


def proxy_for(url: str) -> str | None:
    """The proxy of the environment or the system for ``url``, as everyone expects it."""
    parts = urlsplit(url)
    if urllib.request.proxy_bypass(parts.hostname or ""):
        return None
    proxies = urllib.request.getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    return proxy if not proxy or "://" in proxy else f"http://{proxy}"


def _new_manager(proxy: str, options: dict[str, Any]) -> Any:
    if not proxy:
        return urllib3.PoolManager(**options)
    if proxy.startswith("socks"):
        if find_spec("socks") is None:
            raise UsageError("pull.no_socks", proxy=urlsplit(proxy).hostname)
        from urllib3.contrib.socks import SOCKSProxyManager

        # a name is looked up at the far end: near ends are told wrong addresses
        return SOCKSProxyManager(re.sub("^socks5?:", "socks5h:", proxy), **options)
    user = urlsplit(proxy)
    secrets = None
    if user.username:
        pair = f"{user.username}:{user.password or ''}"
        secrets = urllib3.make_headers(proxy_basic_auth=unquote(pair))
    return urllib3.ProxyManager(proxy, proxy_headers=secrets, **options)


def _finish(response: Any) -> None:
    """Keep the connection where little is left to read; else it is not worth the wait."""
    length = response.headers.get("content-length", "")
    if length.isdigit() and int(length) <= SMALL_BODY:
        response.drain_conn()
        response.release_conn()
    else:
        response.close()


def origin(url: str) -> tuple[str, str]:
    """Scheme and host with port: what credentials are for."""
    parts = urlsplit(url)
    return parts.scheme, parts.netloc


def _checked(
    response: Any, url: str, headers: dict[str, str], start: int, *, redirected: bool
) -> Body:
    """The body of an answer that has what was asked for."""
    status = response.status
    if status == 206:
        told = _CONTENT_RANGE.fullmatch(response.headers.get("content-range", ""))
        if told is None or int(told["start"]) != start:
            response.close()
            raise TransientError("the server sent another range", reached=True)
        total = None if told["total"] == "*" else int(told["total"])
        return Body(response, start, total, headers, url, True)
    if status == 200:
        length = response.headers.get("content-length", "")
        if response.headers.get("content-encoding", "identity") != "identity":
            length = ""  # of what was packed on the way
        return Body(response, 0, int(length) if length.isdigit() else None, headers, url, False)
    response.close()
    if status in _BUSY:
        wait = retry_after(response.headers.get("retry-after"))
        raise TransientError(f"HTTP {status}", wait, reached=True)
    raise StatusError(status, url, redirected=redirected)


def retry_after(value: str | None) -> float | None:
    """Seconds of a Retry-After header: a number, or a date."""
    if not value:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError):
        return None


def reason(error: Exception) -> str:
    """What the system said: the libraries wrap it several times over."""
    if isinstance(error, urllib3.exceptions.ReadTimeoutError):
        return "no bytes for a while"
    # urllib3 2 counts a refused connection among those that took too long
    refused = isinstance(error, urllib3.exceptions.NewConnectionError)
    if isinstance(error, urllib3.exceptions.ConnectTimeoutError) and not refused:
        return "no connection in time"
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        inner = [one for one in cause.args if isinstance(one, BaseException)]
        cause = inner[0] if inner else cause.__cause__ or cause.__context__
    if isinstance(error, (urllib3.exceptions.ProtocolError, urllib3.exceptions.IncompleteRead)):
        return "the connection broke"
    return str(error).partition("\n")[0][:200] or type(error).__name__
