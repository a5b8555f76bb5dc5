"""The look-alike of the Hub, asked by the real client; its faults, seen from a bare connection."""

from __future__ import annotations

import hashlib
import http.client
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from huggingface_hub import HfApi, get_hf_file_metadata, hf_hub_download, hf_hub_url
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from tests.hub_server import PIECE, HubServer

REPO = "xverse/XVERSE-Test"
SMALL, LARGE = "config.json", "weights/model-00001-of-00001.safetensors"
DATA = bytes(range(256)) * 1200  # five pieces
FILES = {SMALL: b'{"model_type": "xverse"}', LARGE: DATA}
EMPTY_BLOB = "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"  # what git calls a file without bytes


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with HubServer() as server:
        server.add_model(REPO, FILES)
        yield server


def get(
    url: str, method: str = "GET", **headers: str
) -> tuple[int, http.client.HTTPMessage, bytes]:
    """Status, headers and body of one request over a connection of its own."""
    parts = urlsplit(url)
    path = f"{parts.path}?{parts.query}"
    with closing(http.client.HTTPConnection(parts.netloc, timeout=10)) as connection:
        connection.request(method, path, headers=headers)
        response = connection.getresponse()
        return response.status, response.headers, response.read()


def resolve(hub: HubServer) -> str:
    """The address on the CDN that the hub redirects to."""
    status, answer, _ = get(f"{hub.url}/{REPO}/resolve/main/{LARGE}", "HEAD")
    assert status == 302
    return str(answer["Location"])


def small_place(hub: HubServer) -> str:
    """Where the hub sends for the small file; like the Hub's own, without a host."""
    return f"/api/resolve-cache/models/{REPO}/{hub.models[REPO].branches['main']}/{SMALL}"


def assert_served(hub: HubServer, count: int) -> None:
    """Bytes are counted once the socket has them: the client may have them first."""
    deadline = time.monotonic() + 5
    while hub.served_bytes != count and time.monotonic() < deadline:
        time.sleep(0.001)
    assert hub.served_bytes == count


def download(hub: HubServer, folder: Path, name: str, **options: Any) -> bytes:
    path = hf_hub_download(REPO, name, endpoint=hub.url, cache_dir=folder, **options)
    return Path(path).read_bytes()


def test_model_info(hub: HubServer) -> None:
    commit = hub.add_model(REPO, {**FILES, "empty": b""}, licence="other")
    info = HfApi(endpoint=hub.url).model_info(REPO, files_metadata=True)
    siblings = {one.rfilename: one for one in info.siblings or ()}
    large = siblings[LARGE].lfs
    assert (info.id, info.sha, info.private, info.gated) == (REPO, commit, False, False)
    assert len(commit) == 40
    assert "license:other" in (info.tags or ())
    assert set(siblings) == {*FILES, "empty"}
    assert siblings["empty"].blob_id == EMPTY_BLOB
    assert (siblings[SMALL].lfs, siblings[SMALL].size) == (None, len(FILES[SMALL]))
    assert large is not None
    assert (large.sha256, large.size) == (hashlib.sha256(DATA).hexdigest(), len(DATA))


def test_commits_and_branches(hub: HubServer, tmp_path: Path) -> None:
    api = HfApi(endpoint=hub.url)
    old = hub.add_model(REPO, {SMALL: b"old"})
    new = hub.add_model(REPO, {SMALL: b"new"})
    side = hub.add_model(REPO, {SMALL: b"side"}, branch="v1")
    for revision, commit in (("main", new), ("v1", side), (old, old)):
        assert api.model_info(REPO, revision=revision).sha == commit
    assert download(hub, tmp_path, SMALL, revision=old) == b"old"
    assert download(hub, tmp_path, SMALL, revision="v1") == b"side"
    hub.forget_commit(REPO, old)
    with pytest.raises(RevisionNotFoundError):
        api.model_info(REPO, revision=old)
    assert hub.add_model(REPO, {SMALL: b"old"}) == old


def test_metadata_of_a_small_and_a_large_file(hub: HubServer) -> None:
    commit = hub.models[REPO].branches["main"]
    blob = hashlib.sha1(b"blob %d\0" % len(FILES[SMALL]) + FILES[SMALL]).hexdigest()
    for name, etag in ((SMALL, blob), (LARGE, hashlib.sha256(DATA).hexdigest())):
        found = get_hf_file_metadata(hf_hub_url(REPO, name, endpoint=hub.url))
        assert (found.commit_hash, found.etag, found.size) == (commit, etag, len(FILES[name]))
        assert found.location.startswith(hub.cdn_url if name == LARGE else hub.url)


def test_the_client_downloads(hub: HubServer, tmp_path: Path) -> None:
    for name, data in FILES.items():
        assert download(hub, tmp_path, name) == data
    assert_served(hub, sum(map(len, FILES.values())))


def test_a_file_on_disk_whose_sha256_is_told(hub: HubServer, tmp_path: Path) -> None:
    source, data = tmp_path / "large.bin", 8 * DATA  # more than one call of sendfile
    source.write_bytes(data)
    hub.add_model(REPO, {"large.bin": source})
    assert download(hub, tmp_path, "large.bin") == data
    hub.add_model(REPO, {"large.bin": source}, sha256={"large.bin": "5" * 64})
    found = get_hf_file_metadata(hf_hub_url(REPO, "large.bin", endpoint=hub.url))
    assert found.etag == "5" * 64


def test_what_is_missing(hub: HubServer, tmp_path: Path) -> None:
    api = HfApi(endpoint=hub.url)
    with pytest.raises(RepositoryNotFoundError):
        api.model_info("xverse/nothing")
    with pytest.raises(RevisionNotFoundError):
        api.model_info(REPO, revision="nothing")
    with pytest.raises(EntryNotFoundError):
        download(hub, tmp_path, "nothing.json")


def test_private_and_gated(hub: HubServer, tmp_path: Path) -> None:
    hub.tokens = {"hf_good"}
    hub.add_model(REPO, FILES, private=True)
    with pytest.raises(RepositoryNotFoundError):
        HfApi(endpoint=hub.url, token=False).model_info(REPO)
    assert HfApi(endpoint=hub.url, token="hf_good").model_info(REPO).private
    assert download(hub, tmp_path, LARGE, token="hf_good") == DATA
    hub.add_model(REPO, FILES, private=False, gated=True)
    with pytest.raises(GatedRepoError):
        get_hf_file_metadata(hf_hub_url(REPO, LARGE, endpoint=hub.url), token=False)
    with pytest.raises(HfHubHTTPError, match="401"):
        HfApi(endpoint=hub.url, token="hf_bad").model_info(REPO)


def test_credentials_that_reach_the_cdn_are_seen(hub: HubServer, tmp_path: Path) -> None:
    hub.tokens = {"hf_good"}
    download(hub, tmp_path, LARGE, token="hf_good")
    assert {one.port for one in hub.requests if "hf_good" in str(one.headers)} == {"hub"}
    assert hub.asked("cdn")
    get(resolve(hub), Authorization="Bearer leaked")
    assert hub.asked("cdn")[-1].headers["Authorization"] == "Bearer leaked"


@pytest.mark.parametrize("on_disk", [False, True])
@pytest.mark.parametrize(
    ("asked", "start", "end"),
    [("0-0", 0, 1), ("100-299", 100, 300), ("70000-", 70000, None), ("5-999999999", 5, None)],
)
def test_a_range(
    hub: HubServer, tmp_path: Path, asked: str, start: int, end: int | None, on_disk: bool
) -> None:
    if on_disk:
        (tmp_path / "file").write_bytes(DATA)
        hub.add_model(REPO, {LARGE: tmp_path / "file"})
    status, headers, body = get(resolve(hub), Range=f"bytes={asked}")
    last = (end or len(DATA)) - 1
    assert (status, body) == (206, DATA[start:end])
    assert headers["Content-Range"] == f"bytes {start}-{last}/{len(DATA)}"
    assert headers["Content-Length"] == str(len(body))
    assert_served(hub, len(body))


def test_ranges_of_small_files_bad_ranges_and_none(hub: HubServer) -> None:
    status, headers, _ = get(f"{hub.url}/{REPO}/resolve/main/{SMALL}")
    assert (status, headers["Location"]) == (307, small_place(hub))
    direct = hub.url + small_place(hub)
    assert get(direct, Range="bytes=1-3")[2] == FILES[SMALL][1:4]
    status, headers, _ = get(resolve(hub), Range=f"bytes={len(DATA)}-")
    assert (status, headers["Content-Range"]) == (416, f"bytes */{len(DATA)}")
    status, headers, body = get(resolve(hub))
    assert (status, headers["Accept-Ranges"], body) == (200, "bytes", DATA)
    hub.faults.no_ranges = True
    status, _, body = get(resolve(hub), Range="bytes=10-19")
    assert (status, body) == (200, DATA)


def test_a_connection_is_kept(hub: HubServer) -> None:
    host = urlsplit(hub.url).netloc
    with closing(http.client.HTTPConnection(host, timeout=10)) as connection:
        for _ in range(3):
            connection.request("GET", small_place(hub))
            own = connection.sock.getsockname()
            assert connection.getresponse().read() == FILES[SMALL]
            assert connection.sock.getsockname() == own  # AttributeError if it was closed


def test_a_body_is_cut_so_many_times(hub: HubServer) -> None:
    hub.faults.cut_after, hub.faults.cut_times = 70_001, 2
    for _ in range(2):
        with pytest.raises(http.client.IncompleteRead) as caught:
            get(resolve(hub))
        assert caught.value.partial == DATA[:70_001]
    assert_served(hub, 2 * 70_001)
    assert get(resolve(hub))[2] == DATA


def test_a_body_stalls_until_the_client_leaves(hub: HubServer) -> None:
    hub.faults.stall_after, hub.faults.stall_times = 1000, 1
    parts = urlsplit(resolve(hub))
    with closing(http.client.HTTPConnection(parts.netloc, timeout=0.2)) as connection:
        connection.request("GET", f"{parts.path}?{parts.query}")
        response = connection.getresponse()
        assert response.read(1000) == DATA[:1000]
        with pytest.raises(TimeoutError):
            response.read(1)
        response.close()
    assert_served(hub, 1000)
    assert get(resolve(hub))[2] == DATA


def test_one_byte_is_wrong_once(hub: HubServer) -> None:
    hub.faults.flip_at, hub.faults.flip_times = 70_000, 1
    assert get(resolve(hub), Range="bytes=0-69999")[2] == DATA[:70_000]  # not in this range
    wrong = get(resolve(hub), Range="bytes=69990-70009")[2]
    differing = [index for index in range(20) if wrong[index] != DATA[69_990 + index]]
    assert differing == [10]
    assert get(resolve(hub))[2] == DATA


@pytest.mark.parametrize("kind", ["api", "resolve", "cdn"])
def test_an_error_answer_for_one_kind_of_request(hub: HubServer, kind: str) -> None:
    direct = f"{hub.url}/{REPO}/resolve/main/{SMALL}"
    urls = {"api": f"{hub.url}/api/models/{REPO}", "resolve": direct, "cdn": resolve(hub)}
    hub.faults.status, hub.faults.status_on, hub.faults.status_times = 429, kind, 1
    hub.faults.retry_after = "7"
    fine = (200, 307)
    assert all(get(url)[0] in fine for other, url in urls.items() if other != kind)
    status, headers, _ = get(urls[kind])
    assert (status, headers["Retry-After"]) == (429, "7")
    assert get(urls[kind])[0] in fine


def test_an_address_expires_until_it_is_resolved_anew(hub: HubServer) -> None:
    address = resolve(hub)
    assert get(address)[0] == 200
    hub.expire_links()
    assert get(address)[0] == 403
    assert get(resolve(hub))[0] == 200


def test_the_rate_is_kept(hub: HubServer) -> None:
    hub.faults.rate = 1_000_000
    started = time.monotonic()
    assert get(resolve(hub))[2] == DATA
    before_the_last = len(DATA) - PIECE  # the pause after it is nobody's
    assert time.monotonic() - started >= before_the_last / hub.faults.rate


@pytest.mark.parametrize("port", ["hub", "cdn", "modelscope"])
def test_a_listener_is_down(hub: HubServer, port: str) -> None:
    urls = {
        "hub": f"{hub.url}/api/models/{REPO}",
        "cdn": resolve(hub),
        "modelscope": f"{hub.url}/api/v1/models/{REPO}/repo/files",
    }
    hub.faults.down = (port,)
    with pytest.raises(ConnectionError):
        get(urls[port])
    assert all(get(url)[0] == 200 for other, url in urls.items() if other != port)
    hub.faults.down = ()
    assert get(urls[port])[0] == 200


def test_what_was_sent_is_not_far_ahead_of_the_client() -> None:
    """A client that takes nothing: the buffers bound what counts as served."""
    with HubServer(send_buffer=2**16) as hub, socket.socket() as client:
        hub.add_model(REPO, {LARGE: bytes(2**24)})
        hub.faults.rate = 10**12  # small pieces, no pause
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**16)
        parts = urlsplit(resolve(hub))
        client.connect((parts.hostname, parts.port))
        request = f"GET {parts.path}?{parts.query} HTTP/1.1\r\nHost: {parts.netloc}\r\n\r\n"
        client.sendall(request.encode())
        time.sleep(0.3)  # it would have sent everything
        assert 0 < hub.served_bytes < 2**20


def test_modelscope_lists_and_serves(hub: HubServer) -> None:
    api = f"{hub.url}/api/v1/models/{REPO}/repo"
    answer = json.loads(get(f"{api}/files?Revision=master&Recursive=true")[2])
    files = {one["Path"]: one for one in answer["Data"]["Files"]}
    assert (answer["Code"], answer["Success"], set(files)) == (200, True, set(FILES))
    for name, data in FILES.items():
        told = files[name]
        assert (told["Type"], told["Size"]) == ("blob", len(data))
        assert told["Sha256"] == hashlib.sha256(data).hexdigest()
    address = f"{api}?Revision=master&FilePath={LARGE}"
    assert get(address)[2] == DATA
    status, _, body = get(address, Range="bytes=10-19")
    assert (status, body) == (206, DATA[10:20])


def test_modelscope_without_the_model(hub: HubServer) -> None:
    hub.add_model("xverse/elsewhere", FILES, hosts=("huggingface",))
    for repo in ("xverse/elsewhere", "xverse/nothing"):
        status, _, body = get(f"{hub.url}/api/v1/models/{repo}/repo/files?Revision=master")
        assert (status, json.loads(body)["Success"]) == (404, False)


def test_it_stops_listening() -> None:
    with HubServer() as hub:
        addresses = [urlsplit(url) for url in (hub.url, hub.cdn_url)]
    for address in addresses:
        with socket.socket() as late, pytest.raises(ConnectionRefusedError):
            late.connect((address.hostname, address.port))


def test_a_process_of_its_own(repository: Path, tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(DATA)
    command = [sys.executable, str(repository / "tests" / "hub_server.py")]
    command += ["--model", f"{REPO}={tmp_path}"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            urls = json.loads(process.stdout.readline())
            status, headers, _ = get(f"{urls['url']}/{REPO}/resolve/main/model.bin")
            assert status == 302
            assert headers["Location"].startswith(urls["cdn_url"])
            assert get(headers["Location"])[2] == DATA
            assert json.loads(get(urls["url"] + "/_stats")[2])["served_bytes"] == len(DATA)
            process.stdin.close()  # whoever started it is gone: it ends by itself
            assert process.wait(timeout=20) == 0
        finally:
            process.kill()
