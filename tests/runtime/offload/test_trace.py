"""The trace file: what is written is read, and what is not as written is an error."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path
from random import Random

import pytest

from xverse_runtime.errors import IntegrityError, ResourceError, UsageError, XverseError
from xverse_runtime.offload.trace import RoutedPass, RoutedToken, TraceHeader, tokens_of
from xverse_runtime.offload.trace_file import MAGIC, TraceReader, TraceWriter

HEADER = TraceHeader("模型", layers=3, experts=9, top_k=2, listed=4, probabilities=True)
PLAIN = TraceHeader("m", layers=2, experts=256, top_k=3, listed=3, probabilities=False)


def some_passes(header: TraceHeader, sizes: tuple[int, ...] = (5, 1, 1), seed: int = 0):  # type: ignore[no-untyped-def]
    random = Random(seed)

    def token() -> RoutedToken:
        chosen = range(header.experts)
        experts = tuple(tuple(random.sample(chosen, header.listed)) for _ in range(header.layers))
        if not header.probabilities:
            return RoutedToken(experts)
        of_layer = tuple(
            tuple(random.randrange(65536) / 65535 for _ in range(header.listed)) for _ in experts
        )
        return RoutedToken(experts, of_layer)

    return [RoutedPass(tuple(token() for _ in range(size))) for size in sizes]


def write(path: Path, header: TraceHeader, passes: list[RoutedPass]) -> bytes:
    with TraceWriter(path, header) as writer:
        for one in passes:
            writer.write(one)
    return path.read_bytes()


@pytest.mark.parametrize("header", [HEADER, PLAIN], ids=["probabilities", "plain"])
def test_round_trip(tmp_path: Path, header: TraceHeader) -> None:
    passes = some_passes(header)
    data = write(tmp_path / "t", header, passes)
    reader = TraceReader(tmp_path / "t")
    assert reader.header == header
    assert list(reader) == passes
    text = json.dumps(header.__dict__, ensure_ascii=False).encode()
    assert len(data) == 8 + 4 + len(text) + sum(8 + n * header.token_bytes for n in (5, 1, 1))
    assert len(tokens_of(passes)) == 7


def test_the_bytes_are_those_of_the_description(tmp_path: Path) -> None:
    header = TraceHeader("m", layers=2, experts=8, top_k=1, listed=2, probabilities=True)
    token = RoutedToken(((3, 1), (0, 7)), ((1.0, 0.0), (0.5, 0.25)))
    data = write(tmp_path / "t", header, [RoutedPass((token,))])
    text = (
        b'{"model": "m", "layers": 2, "experts": 8, "top_k": 1, "listed": 2, "probabilities": true}'
    )
    body = struct.pack("<I", 1) + bytes([3, 1, 0, 7]) + struct.pack("<4H", 65535, 0, 32768, 16384)
    expected = MAGIC + struct.pack("<I", len(text)) + text + body
    assert data == expected + struct.pack("<I", zlib.crc32(body))


def test_each_pass_is_in_the_file_at_once(tmp_path: Path) -> None:
    passes = some_passes(HEADER)
    with TraceWriter(tmp_path / "t", HEADER) as writer:
        assert list(TraceReader(tmp_path / "t")) == []
        for count, one in enumerate(passes, start=1):
            writer.write(one)
            assert list(TraceReader(tmp_path / "t")) == passes[:count]


def test_a_file_cut_off_anywhere(tmp_path: Path) -> None:
    """Between two passes it is a shorter trace; elsewhere an error after the whole passes."""
    path = tmp_path / "t"
    passes = some_passes(HEADER, (2, 1))
    data = write(path, HEADER, passes)
    ends = [len(data) - 2 * 8 - 3 * HEADER.token_bytes, len(data) - 8 - HEADER.token_bytes]
    for size in range(len(data)):
        path.write_bytes(data[:size])
        whole: list[RoutedPass] = []
        if size in ends:
            whole.extend(TraceReader(path))
        else:
            # The passes before the damage count, so the loop is inside.
            with pytest.raises(IntegrityError) as caught:  # noqa: PT012
                for one in TraceReader(path):
                    whole.append(one)
            assert caught.value.code == "trace.invalid"
        assert whole == passes[: sum(size >= end for end in (*ends[1:], len(data)))]


def test_any_byte_that_changes_is_noticed_or_harmless(tmp_path: Path) -> None:
    path = tmp_path / "t"
    passes = some_passes(HEADER, (2, 1))
    data = write(path, HEADER, passes)
    header_end = len(data) - 2 * 8 - 3 * HEADER.token_bytes
    for place in range(len(data)):
        for flip in (0x01, 0x80, 0xFF):
            path.write_bytes(data[:place] + bytes([data[place] ^ flip]) + data[place + 1 :])
            if place >= header_end:
                with pytest.raises(IntegrityError):
                    list(TraceReader(path))
                continue
            try:  # in the header, another name is another name
                read = list(TraceReader(path))
            except XverseError:
                continue
            assert read == passes


def described(**changes: object) -> bytes:
    told = {**HEADER.__dict__, **changes}
    text = json.dumps(told).encode()
    return MAGIC + struct.pack("<I", len(text)) + text


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"XVROUTE2",
        MAGIC + struct.pack("<I", 1 << 30),
        MAGIC + struct.pack("<I", 2) + b"[]",
        MAGIC + struct.pack("<I", 2) + b"\xff\xfe",
        MAGIC + struct.pack("<I", 20000) + b"[" * 20000,
        MAGIC + struct.pack("<I", 2) + b"{}",
        described(layers=0),
        described(layers=10**9),
        described(layers=True),
        described(layers=1.5),
        described(experts=257),
        described(listed=1),
        described(listed=10),
        described(top_k=0),
        described(probabilities=1),
        described(model=None),
    ],
)
def test_headers_that_make_no_sense(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "t").write_bytes(data)
    with pytest.raises(IntegrityError) as caught:
        TraceReader(tmp_path / "t")
    assert caught.value.code == "trace.invalid"


def framed(*rows: int, count: int = 1) -> bytes:
    fractions = bytes(2 * len(rows))
    body = struct.pack("<I", count) + bytes(rows) + fractions
    return described() + body + struct.pack("<I", zlib.crc32(body))


@pytest.mark.parametrize(
    "data",
    [
        framed(0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 9),  # no such expert
        framed(0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 2),  # one twice
        framed(count=0),
        framed(count=(1 << 20) + 1),
        framed(count=1 << 20),
    ],
)
def test_passes_that_cannot_be(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "t").write_bytes(data)
    with pytest.raises(IntegrityError):
        list(TraceReader(tmp_path / "t"))
    (tmp_path / "t").write_bytes(framed(*(0, 1, 2, 8) * 3))
    assert len(list(TraceReader(tmp_path / "t"))) == 1


def test_files_that_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"trace\.unreadable"):
        TraceReader(tmp_path / "none")
    with pytest.raises(UsageError, match=r"trace\.unwritable"):
        TraceWriter(tmp_path / "none" / "t", HEADER)
    with pytest.raises(UsageError, match=r"trace\.shape"):
        TraceWriter(tmp_path / "t", TraceHeader("m", 2, 300, 2, 2, False))
    assert not (tmp_path / "t").exists()


def test_a_full_disk() -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("no /dev/full")
    with pytest.raises(ResourceError, match=r"trace\.disk"):
        TraceWriter(full, HEADER)
