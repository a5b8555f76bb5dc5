"""A look-alike of the Hugging Face Hub, and of ModelScope, on loopback, with switchable faults.

Two listeners: the hub answers the API and sends redirects for large files, the CDN has their
bytes. In a test: ``with HubServer() as hub: hub.add_model("org/name", {"config.json": b"{}"})``.
As a process of its own: ``python tests/hub_server.py --model org/name=DIR``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

PIECE = 2**16
LARGE = ("*.bin", "*.safetensors")


@dataclass(frozen=True)
class Content:
    """The bytes of a file, in memory or on disk."""

    source: bytes | Path
    large: bool
    known_sha256: str | None = None

    @cached_property
    def size(self) -> int:
        return len(self.source) if isinstance(self.source, bytes) else self.source.stat().st_size

    @cached_property
    def sha256(self) -> str:
        if self.known_sha256:
            return self.known_sha256
        if isinstance(self.source, bytes):
            return hashlib.sha256(self.source).hexdigest()
        with self.source.open("rb") as file:
            return (
                hashlib.file_digest(file, "sha256").hexdigest()
                if hasattr(hashlib, "file_digest")
                else hashlib.sha256(file.read()).hexdigest()
            )

    @cached_property
    def git_id(self) -> str:
        data = b"version" + self.sha256.encode() if self.large else self.read(0, self.size)
        return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()

    def read(self, start: int, end: int) -> bytes:
        if isinstance(self.source, bytes):
            return self.source[start:end]
        with self.source.open("rb") as file:
            file.seek(start)
            return file.read(end - start)


@dataclass
class Faults:
    """What goes wrong. Counters say how often still; a negative one means always."""

    cut_after: int = 0  # bytes of a body, then the connection is closed
    cut_times: int = 0
    stall_after: int = 0  # bytes of a body, then nothing more comes
    stall_times: int = 0
    flip_at: int = 0  # this byte of a large file is another one
    flip_times: int = 0
    status: int = 0  # instead of an answer
    status_times: int = 0
    status_on: str = "cdn"  # or "resolve", "api"
    retry_after: str | None = None
    no_ranges: bool = False
    rate: float = 0  # bytes per second of each body; 0 is as fast as it goes
    down: tuple[str, ...] = ()  # listeners that close every connection: "hub", "cdn", "modelscope"
    lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, name: str) -> bool:
        """Whether a fault strikes now; counts it down."""
        with self.lock:
            left = getattr(self, f"{name}_times")
            if left > 0:
                setattr(self, f"{name}_times", left - 1)
            return bool(left)

    @property
    def exact(self) -> bool:
        """Whether bodies must go out in small pieces."""
        return bool(self.cut_times or self.stall_times or self.flip_times or self.rate)


@dataclass(frozen=True)
class Request:
    """One request that came."""

    port: str  # "hub" or "cdn"
    method: str
    path: str
    headers: dict[str, str]


@dataclass
class Model:
    """A repository: its commits, and what its branches stand for."""

    commits: dict[str, dict[str, Content]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    licence: str = "other"
    gated: bool = False
    private: bool = False
    hosts: tuple[str, ...] = ("huggingface", "modelscope")

    def find(self, revision: str) -> str | None:
        commit = self.branches.get(revision, revision)
        return commit if commit in self.commits else None


class HubServer:
    """See the module."""

    def __init__(self, *, port: int = 0, cdn_port: int = 0, send_buffer: int | None = None) -> None:
        self.models: dict[str, Model] = {}
        self.faults = Faults()
        self.tokens: set[str] = set()
        self.requests: list[Request] = []
        self.signature = 1
        self._served = 0
        self._lock = threading.Lock()
        self.stopping = threading.Event()
        self._servers = {
            "hub": _listen(self, "hub", port, send_buffer),
            "cdn": _listen(self, "cdn", cdn_port, send_buffer),
        }
        self._threads = [
            threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
            for server in self._servers.values()
        ]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._servers['hub'].server_port}"

    @property
    def cdn_url(self) -> str:
        # another name than the hub's, as in life
        return f"http://localhost:{self._servers['cdn'].server_port}"

    def __enter__(self) -> HubServer:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping.set()
        for server in self._servers.values():
            server.shutdown()
            server.server_close()
        for thread in self._threads:
            thread.join()

    def add_model(
        self,
        repo: str,
        files: Mapping[str, bytes | Path],
        *,
        branch: str = "main",
        large: tuple[str, ...] = LARGE,
        sha256: Mapping[str, str] | None = None,
        **about: Any,
    ) -> str:
        """Publish files as a new commit of a branch; the commit."""
        contents = {
            name: Content(
                source, any(fnmatch(name, one) for one in large), (sha256 or {}).get(name)
            )
            for name, source in files.items()
        }
        listed = "".join(f"{name} {one.sha256}\n" for name, one in sorted(contents.items()))
        commit = hashlib.sha1(listed.encode()).hexdigest()
        model = self.models.setdefault(repo, Model())
        for key, value in about.items():
            setattr(model, key, value)
        model.commits[commit] = contents
        model.branches[branch] = commit
        model.branches["master"] = model.branches.get("main", commit)
        return commit

    def forget_commit(self, repo: str, commit: str) -> None:
        del self.models[repo].commits[commit]

    def expire_links(self) -> None:
        """Addresses on the CDN that were given so far are refused from now on."""
        self.signature += 1

    @property
    def served_bytes(self) -> int:
        """Bytes of files that were handed to the sockets."""
        return self._served

    def count(self, served: int) -> None:
        with self._lock:
            self._served += served

    def asked(self, port: str, part: str = "") -> list[Request]:
        """Requests that came to a listener, with ``part`` in their path."""
        return [one for one in self.requests if one.port == port and part in one.path]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: HubServer
    port: str

    def log_message(self, *_: object) -> None:
        pass

    def handle(self) -> None:
        try:
            super().handle()
        except OSError:
            self.close_connection = True  # the client went away

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        hub, url = self.hub, urlsplit(self.path)
        path = unquote(url.path)
        if path == "/_stats":
            return self._json({"served_bytes": hub.served_bytes})
        hub.requests.append(Request(self.port, self.command, self.path, dict(self.headers)))
        modelscope = "/api/v1/" in path
        if ("modelscope" if modelscope else self.port) in hub.faults.down:
            self.close_connection = True
            return None
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        if self.port == "cdn":
            return self._cdn(path, query)
        if modelscope:
            return self._modelscope(path, query)
        return self._hub(path)

    # The Hub.

    def _hub(self, path: str) -> None:
        api = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path)
        resolve = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        cached = re.fullmatch(r"/api/resolve-cache/models/([^/]+/[^/]+)/([^/]+)/(.+)", path)
        if self._refused("api" if api else "resolve"):
            return
        if api:
            self._info(api[1], api[2] or "main")
        elif cached:
            self._small(cached[1], cached[2], cached[3])
        elif resolve:
            self._resolve(resolve[1], resolve[2], resolve[3])
        else:
            self._problem(404, "EntryNotFound")

    def _model(self, repo: str, revision: str) -> tuple[Model, str] | None:
        model = self.hub.models.get(repo)
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        known = token in self.hub.tokens
        if token and not known and self.hub.tokens:
            self._problem(401, "InvalidToken")
        elif model is None or "huggingface" not in model.hosts or (model.private and not known):
            self._problem(404 if known else 401, "RepoNotFound")
        elif model.gated and not known:
            self._problem(403, "GatedRepo")
        elif (commit := model.find(revision)) is None:
            self._problem(404, "RevisionNotFound")
        else:
            return model, commit
        return None

    def _info(self, repo: str, revision: str) -> None:
        if found := self._model(repo, revision):
            model, commit = found
            siblings = [_sibling(name, one) for name, one in model.commits[commit].items()]
            self._json(
                {
                    "id": repo,
                    "modelId": repo,
                    "sha": commit,
                    "private": model.private,
                    "gated": "manual" if model.gated else False,
                    "tags": [f"license:{model.licence}"],
                    "siblings": siblings,
                }
            )

    def _resolve(self, repo: str, revision: str, name: str) -> None:
        found = self._model(repo, revision)
        if found is None:
            return None
        model, commit = found
        content = model.commits[commit].get(name)
        if content is None:
            return self._problem(404, "EntryNotFound")
        headers = {"X-Repo-Commit": commit, "ETag": f'"{content.git_id}"'}
        if not content.large:
            place = f"/api/resolve-cache/models/{quote(repo)}/{commit}/{quote(name)}"
            return self._send(307, b"", {**headers, "Location": place})
        target = f"{self.hub.cdn_url}/{quote(repo)}/{commit}/{quote(name)}"
        headers |= {
            "Location": f"{target}?Signature={self.hub.signature}",
            "X-Linked-Etag": f'"{content.sha256}"',
            "X-Linked-Size": str(content.size),
            "ETag": f'"{content.sha256}"',
        }
        return self._send(302, b"", headers)

    def _small(self, repo: str, commit: str, name: str) -> None:
        """A small file, where `_resolve` sends for it; a private one still wants the token."""
        if found := self._model(repo, commit):
            content = found[0].commits[commit][name]
            self._content(content, {"X-Repo-Commit": commit, "ETag": f'"{content.git_id}"'})

    def _cdn(self, path: str, query: Mapping[str, str]) -> None:
        _, owner, name, commit, file = path.split("/", 4)
        if self._refused("cdn"):
            return
        content = self.hub.models[f"{owner}/{name}"].commits.get(commit, {}).get(file)
        if query.get("Signature") != str(self.hub.signature):
            self._send(403, b"<Error>Request has expired</Error>", {})
        elif content is None:
            self._send(404, b"", {})
        else:
            self._content(content, {"ETag": '"0123-storage"'})

    # ModelScope.

    def _modelscope(self, path: str, query: Mapping[str, str]) -> None:
        match = re.fullmatch(r"/api/v1/models/([^/]+/[^/]+)/repo(/files)?", path)
        model = self.hub.models.get(match[1]) if match else None
        commit = model.find(query.get("Revision", "master")) if model else None
        if self._refused("modelscope"):
            return
        if match and model and match[2] and commit is None:
            self._json({"Code": 200, "Data": {"Files": None}, "Success": True})
        elif match is None or model is None or "modelscope" not in model.hosts or commit is None:
            answer = {"Code": 10010205001, "Message": "not found", "Success": False}
            self._json(answer, status=404)
        elif match[2]:
            files = [
                {"Path": name, "Name": name, "Type": "blob", "Size": one.size, "Sha256": one.sha256}
                for name, one in model.commits[commit].items()
            ]
            self._json({"Code": 200, "Data": {"Files": files}, "Success": True})
        elif content := model.commits[commit].get(query.get("FilePath", "")):
            self._content(content, {})
        else:
            self._send(404, b"", {})

    # Answers.

    def _refused(self, kind: str) -> bool:
        faults = self.hub.faults
        if faults.status and faults.status_on == kind and faults.take("status"):
            after = {"Retry-After": faults.retry_after} if faults.retry_after else {}
            self._send(faults.status, b"", after)
            return True
        return False

    def _problem(self, status: int, code: str) -> None:
        self._send(status, b"{}", {"X-Error-Code": code, "X-Error-Message": code})

    def _json(self, value: object, status: int = 200) -> None:
        data = json.dumps(value).encode()
        self._send(status, data, {"Content-Type": "application/json"})

    def _send(self, status: int, data: bytes, headers: Mapping[str, str]) -> None:
        self._head(status, len(data), headers)
        if self.command != "HEAD":
            self.wfile.write(data)

    def _head(self, status: int, length: int, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(length)}.items():
            self.send_header(key, value)
        self.end_headers()

    def _content(self, content: Content, headers: Mapping[str, str]) -> None:
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        start, end, status = 0, content.size, 200
        if wanted and not self.hub.faults.no_ranges:
            start, status = int(wanted[1]), 206
            end = min(int(wanted[2]) + 1, end) if wanted[2] else end
            if start >= end:
                return self._send(416, b"", {"Content-Range": f"bytes */{content.size}"})
            headers = {**headers, "Content-Range": f"bytes {start}-{end - 1}/{content.size}"}
        self._head(status, end - start, {**headers, "Accept-Ranges": "bytes"})
        if self.command != "HEAD":
            if self.hub.faults.exact or isinstance(content.source, bytes):
                self._pieces(content, start, end)
            else:
                self._fast(content.source, start, end)
        return None

    def _fast(self, path: Path, start: int, end: int) -> None:
        with path.open("rb") as file:
            while start < end:
                sent = os.sendfile(
                    self.connection.fileno(), file.fileno(), start, min(2**20, end - start)
                )
                if not sent:
                    raise EOFError(f"{path} has become shorter")
                self.hub.count(sent)
                start += sent

    def _pieces(self, content: Content, start: int, end: int) -> None:
        faults, sent = self.hub.faults, 0
        flips = content.large and start <= faults.flip_at < end and faults.take("flip")
        cut = content.large and faults.take("cut")
        stall = content.large and faults.take("stall")
        while start < end:
            most = PIECE
            if cut or stall:
                most = min(most, (faults.cut_after if cut else faults.stall_after) - sent)
                if most <= 0:
                    return self._stop(stall)
            piece = bytearray(content.read(start, min(end, start + most)))
            if flips and start <= faults.flip_at < start + len(piece):
                piece[faults.flip_at - start] ^= 1
            self.connection.sendall(piece)
            self.hub.count(len(piece))
            start, sent = start + len(piece), sent + len(piece)
            if faults.rate:
                time.sleep(len(piece) / faults.rate)
        return None

    def _stop(self, stall: bool) -> None:
        if stall:
            self.connection.settimeout(0.05)
            while not self.hub.stopping.is_set():
                try:
                    if not self.connection.recv(1):
                        break
                except TimeoutError:
                    continue
        self.close_connection = True


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    send_buffer: int | None = None

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        if self.send_buffer:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, self.send_buffer)
        return connection, address

    def handle_error(self, *_: object) -> None:
        """Errors of the server itself must be seen: a client takes them for the network's."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(None, None)  # type: ignore[arg-type]


def _listen(hub: HubServer, port_name: str, port: int, send_buffer: int | None) -> _Server:
    handler = type("Handler", (_Handler,), {"hub": hub, "port": port_name})
    server = _Server(("127.0.0.1", port), handler)
    server.send_buffer = send_buffer
    return server


def _sibling(name: str, content: Content) -> dict[str, object]:
    entry: dict[str, object] = {
        "rfilename": name,
        "size": content.size,
        "blobId": content.git_id,
    }
    if content.large:
        entry["lfs"] = {"sha256": content.sha256, "size": content.size, "pointerSize": 134}
    return entry


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", action="append", required=True, metavar="ORG/NAME=DIR")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--cdn-port", type=int, default=0)
    parser.add_argument("--send-buffer", type=int, default=None)
    parser.add_argument("--rate", type=float, default=0)
    options = parser.parse_args()
    with HubServer(
        port=options.port, cdn_port=options.cdn_port, send_buffer=options.send_buffer
    ) as hub:
        hub.faults.rate = options.rate
        for model in options.model:
            repo, _, folder = model.partition("=")
            hub.add_model(repo, {one.name: one for one in sorted(Path(folder).iterdir())})
        print(json.dumps({"url": hub.url, "cdn_url": hub.cdn_url}), flush=True)
        sys.stdin.read()  # until whoever started it is gone


if __name__ == "__main__":
    main()
