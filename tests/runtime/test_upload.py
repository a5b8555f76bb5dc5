"""Weights from files to a device, over a link that delivers late."""

from __future__ import annotations

import errno
import gc
import os
import signal
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.fake_link import FakeCopy, FakeLink
from xverse_runtime import upload
from xverse_runtime.errors import IntegrityError
from xverse_runtime.host_reader import HostReader
from xverse_runtime.link import HostLink
from xverse_runtime.mapped_files import MappedFiles, map_safetensors
from xverse_runtime.upload import BUFFERS, Uploader

CPU = torch.device("cpu")
READERS, PIECE = 3, 1 << 14
SLOW = 20e6  # bytes a second: a late copy is seen to be late


@pytest.fixture(autouse=True)
def no_reader_is_left() -> object:
    yield
    assert not [one for one in threading.enumerate() if one.name in ("loading", "reading_0")]


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    """Tensors of several dtypes, one of them of many pieces, none at a multiple of a page."""
    torch.manual_seed(0)
    path = tmp_path / "weights.safetensors"
    tensors = {
        "bytes": torch.randint(0, 256, (70, 5001), dtype=torch.uint8),
        "floats": torch.randn(333, 65),
        "halves": torch.randn(64, 96).to(torch.bfloat16),
        "one": torch.randn(1),
    }
    save_file(tensors, path)
    return path


def send(uploader: Uploader, mapped: dict[str, Tensor]) -> dict[str, Tensor]:
    placed = {name: uploader.to_device(tensor) for name, tensor in mapped.items()}
    uploader.finish()
    return placed


def upload_all(
    path: Path, link: FakeLink, on_loaded: Callable[[int], None] = lambda _bytes: None
) -> dict[str, Tensor]:
    with MappedFiles() as files:
        mapped = map_safetensors(path, path.name, files)
        with Uploader(link, files, on_loaded, readers=READERS, piece_bytes=PIECE) as uploader:
            return {name: tensor.clone() for name, tensor in send(uploader, mapped).items()}


def assert_same(found: dict[str, Tensor], path: Path) -> None:
    wanted = map_safetensors(path, path.name)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


# ---------------------------------------------------------------------- bytes


@pytest.mark.parametrize("bandwidth", [SLOW, float("inf")])
def test_bytes_arrive_as_they_are_in_the_file(shard: Path, bandwidth: float) -> None:
    assert_same(upload_all(shard, FakeLink(bandwidth)), shard)


def test_a_buffer_overwritten_too_early_would_be_seen(
    shard: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeCopy, "wait", lambda _self: None)
    with pytest.raises(AssertionError):
        assert_same(upload_all(shard, FakeLink(SLOW)), shard)


def test_a_target_used_before_the_end_would_be_seen(
    shard: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeLink, "finish", lambda _self: None)
    with pytest.raises(AssertionError):
        assert_same(upload_all(shard, FakeLink(SLOW)), shard)


def test_every_byte_is_read_from_the_file_once(
    shard: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a read may bring less than was asked for."""
    plain, got = os.preadv, []

    def at_most_1000(descriptor: int, buffers: Sequence[memoryview], offset: int) -> int:
        count = plain(descriptor, [buffers[0][:1000]], offset)
        got.append((offset, count))
        return count

    monkeypatch.setattr(os, "preadv", at_most_1000)
    assert_same(upload_all(shard, FakeLink(SLOW * 10)), shard)
    sizes = [tensor.nbytes for tensor in map_safetensors(shard, shard.name).values()]
    assert sum(count for _, count in got) == sum(sizes)
    assert len({offset for offset, _ in got}) == len(got)


def test_tensors_of_no_file_are_read_where_they_lie(
    shard: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And those whose file is not known: the same code where there is no preadv."""
    monkeypatch.setattr("xverse_runtime.mapped_files.READS", False)
    monkeypatch.delattr(os, "preadv")
    assert_same(upload_all(shard, FakeLink(SLOW)), shard)
    scattered = torch.arange(60_000, dtype=torch.int32).view(200, 300).t()
    with Uploader(FakeLink(SLOW), readers=READERS, piece_bytes=PIECE) as uploader:
        placed = uploader.to_device(scattered)
        uploader.finish()
    assert torch.equal(placed, scattered)


def test_parts_of_a_tensor_are_found_in_its_file(shard: Path) -> None:
    with MappedFiles() as files:
        tensors = map_safetensors(shard, shard.name, files)
        part = tensors["bytes"][3:9]
        region = files.region(part)
        assert region is not None
        raw = shard.read_bytes()[region.offset : region.offset + region.nbytes]
        assert torch.equal(torch.frombuffer(bytearray(raw), dtype=torch.uint8), part.flatten())
        assert files.region(tensors["bytes"][:, 1:]) is None  # rows with gaps between them
        assert files.region(part.clone()) is None
    assert files.region(part) is None  # the files are closed


def test_a_target_of_another_dtype_or_with_gaps_gets_the_same_numbers(shard: Path) -> None:
    with MappedFiles() as files:
        source = map_safetensors(shard, shard.name, files)["halves"]
        with Uploader(FakeLink(SLOW), files, readers=READERS, piece_bytes=4096) as uploader:
            wide = uploader.to_device(source, torch.float32)
            pairs = torch.zeros(4, 2, 16, 96)
            uploader.copy(source, pairs[:, 1])
            uploader.finish()
    assert torch.equal(wide, source.float())
    assert torch.equal(pairs[:, 1].reshape(64, 96), source.float())
    assert not pairs[:, 0].any()


# ---------------------------------------------------------------------- when something fails


def test_a_file_that_became_shorter_is_an_error_and_no_signal(shard: Path) -> None:
    link = FakeLink(SLOW)
    with MappedFiles() as files:
        mapped = map_safetensors(shard, shard.name, files)
        os.truncate(shard, shard.stat().st_size // 2)
        uploader = Uploader(link, files, readers=READERS, piece_bytes=PIECE)
        with uploader, pytest.raises(IntegrityError) as caught:
            send(uploader, mapped)
    assert caught.value.code == "checkpoint.corrupt"
    assert caught.value.params["path"] == shard.name
    assert "ends at" in str(caught.value.params["detail"])
    assert link.closed


def test_a_failing_disk_is_named(shard: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, calls = os.preadv, []

    def fails_later(descriptor: int, buffers: Sequence[memoryview], offset: int) -> int:
        calls.append(offset)
        if len(calls) > 4:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return plain(descriptor, buffers, offset)

    monkeypatch.setattr(os, "preadv", fails_later)
    link = FakeLink(SLOW)
    with pytest.raises(IntegrityError, match="Input/output error") as caught:
        upload_all(shard, link)
    assert caught.value.code == "checkpoint.corrupt"
    assert link.closed


def test_what_the_device_says_reaches_the_caller(shard: Path) -> None:
    def full() -> None:
        raise torch.OutOfMemoryError("no room for a converted piece")

    link = FakeLink(SLOW, on_send=full)
    with pytest.raises(torch.OutOfMemoryError, match="no room"):
        upload_all(shard, link)
    assert link.closed


def test_a_failed_loading_holds_nothing_when_its_error_is_gone(shard: Path) -> None:
    """Without the garbage collector: the next attempt wants the memory at once."""

    def full() -> None:
        raise torch.OutOfMemoryError("no room for a converted piece")

    mapped = map_safetensors(shard, shard.name)
    loaded: list[weakref.ref[Tensor]] = []

    def load() -> None:
        with Uploader(FakeLink(on_send=full), readers=1, piece_bytes=PIECE) as uploader:
            placed = uploader.to_device(mapped["bytes"])
            loaded.append(weakref.ref(placed))
            uploader.finish()

    gc.disable()
    try:
        with pytest.raises(torch.OutOfMemoryError):
            load()
        assert loaded[0]() is None
    finally:
        gc.enable()


def test_interrupted_while_it_waits_for_a_slow_link(shard: Path) -> None:
    """Ctrl-C ends the loading within moments, not when everything has crossed."""
    link = FakeLink(1e5)  # 5 s for the file
    timer = threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        upload_all(shard, link)
    timer.join()
    assert link.closed
    assert link.sent_bytes < shard.stat().st_size / 2


def test_interrupted_again_while_a_reader_has_a_piece(shard: Path) -> None:
    """What it sends from stays pinned until it is through."""
    reading = threading.Event()
    closed_early: list[bool] = []

    def slow_disk() -> None:
        reading.set()
        time.sleep(0.5)
        closed_early.append(link.closed)

    link = FakeLink(on_send=slow_disk)

    def twice() -> None:
        reading.wait()
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.1)

    timer = threading.Thread(target=twice)
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        upload_all(shard, link)
    timer.join()
    assert link.closed
    assert closed_early
    assert not any(closed_early)


def test_stopped_by_its_own_progress(shard: Path) -> None:
    def stop(_bytes: int) -> None:
        raise KeyboardInterrupt

    link = FakeLink(SLOW)
    with pytest.raises(KeyboardInterrupt):
        upload_all(shard, link, stop)
    assert link.closed


# ---------------------------------------------------------------------- progress, memory, pace


def test_progress_is_told_in_steps_by_the_caller(shard: Path) -> None:
    told, tellers = [], set()

    def tell(count: int) -> None:
        told.append(count)
        tellers.add(threading.current_thread())

    upload_all(shard, FakeLink(1e6), tell)
    sizes = [tensor.nbytes for tensor in map_safetensors(shard, shard.name).values()]
    assert sum(told) == sum(sizes)
    assert len(told) > 2
    assert tellers == {threading.current_thread()}


def test_staging_is_bounded_and_given_back(shard: Path) -> None:
    link, most = FakeLink(SLOW), []
    upload_all(shard, link, lambda _bytes: most.append(link.staging_bytes))
    assert 0 < max(most) <= READERS * BUFFERS * PIECE
    assert link.staging_bytes == link.pinned_bytes == 0


def test_little_to_load_takes_little_memory(shard: Path) -> None:
    link, most = FakeLink(SLOW), []
    with MappedFiles() as files:
        one = map_safetensors(shard, shard.name, files)["one"]
        told = lambda _bytes: most.append(link.staging_bytes)  # noqa: E731
        with Uploader(link, files, told, readers=8, piece_bytes=PIECE) as uploader:
            uploader.to_device(one)
            uploader.finish()
    assert most == [PIECE]


@pytest.mark.parametrize("most", [0, 2 * PIECE])
def test_what_cannot_be_pinned_is_copied_all_the_same(shard: Path, most: int) -> None:
    pinned: list[int] = []
    link = FakeLink(SLOW, pins=lambda nbytes: nbytes <= most)
    found = upload_all(shard, link, lambda _bytes: pinned.append(link.pinned_bytes))
    assert_same(found, shard)
    assert max(pinned) == most


def test_the_host_itself_is_a_link(shard: Path) -> None:
    with MappedFiles() as files:
        mapped = map_safetensors(shard, shard.name, files)
        with Uploader(HostLink(CPU), files, readers=2, piece_bytes=PIECE) as uploader:
            placed = send(uploader, mapped)
    assert_same(placed, shard)


def test_a_slow_link_is_kept_busy(tmp_path: Path) -> None:
    """At least 80 % of its bandwidth, reading and start included; the best of three."""
    path, size = tmp_path / "weights.safetensors", 4 << 20
    save_file({"all": torch.zeros(size, dtype=torch.uint8)}, path)
    shares = []
    while len(shares) < 3 and max(shares, default=0) < 0.8:
        started = time.perf_counter()
        with MappedFiles() as files:
            mapped = map_safetensors(path, path.name, files)
            with Uploader(FakeLink(5e6), files, readers=2, piece_bytes=1 << 18) as uploader:
                uploader.to_device(mapped["all"])
                uploader.finish()
        shares.append(size / 5e6 / (time.perf_counter() - started))
    assert 0.8 <= max(shares) <= 1


def test_readers_are_few() -> None:
    assert upload.LEAST_READERS <= upload.reader_threads() <= upload.MOST_READERS


def test_host_memory_is_filled_from_files(shard: Path) -> None:
    with MappedFiles() as files, HostReader(files, readers=3) as reader:
        mapped = map_safetensors(shard, shard.name, files)
        copies = {name: torch.empty_like(tensor) for name, tensor in mapped.items()}
        reader.copy((mapped[name], copies[name]) for name in mapped)
        assert_same(copies, shard)
        os.truncate(shard, shard.stat().st_size - 100)
        with pytest.raises(IntegrityError, match="ends at"):
            reader.copy((mapped[name], copies[name]) for name in mapped)
