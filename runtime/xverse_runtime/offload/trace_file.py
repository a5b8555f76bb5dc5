"""The file of a routing trace, written as the model runs: one frame a forward pass.

docs/offload.md has it byte for byte. Whatever is cut off between two frames is a shorter trace;
anything else that is not as written is an error.
"""

from __future__ import annotations

import json
import os
import struct
import sys
import zlib
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from types import TracebackType
from typing import IO, TypeVar

from xverse_runtime.errors import IntegrityError, ResourceError, UsageError
from xverse_runtime.offload.trace import RoutedPass, RoutedToken, TraceHeader

Number = TypeVar("Number", int, float)

MAGIC = b"XVROUTE1"
MOST_TOKENS = 1 << 20  # in a frame; more than any context holds
_MOST_HEADER = 1 << 16
_COUNT = struct.Struct("<I")
_SCALE = 65535  # a probability is a 16-bit fraction


class TraceWriter:
    """Writes passes as they come; each is in the file when `write` returns."""

    def __init__(self, path: Path, header: TraceHeader) -> None:
        """Begin a file.

        Raises:
            UsageError: ``trace.unwritable``, ``trace.shape``.
        """
        if not header.is_sound():
            raise UsageError("trace.shape", layers=header.layers, experts=header.experts)
        self.path = path
        self.header = header
        text = json.dumps(asdict(header), ensure_ascii=False).encode()
        try:
            self._file: IO[bytes] = path.open("wb", buffering=0)
        except OSError as error:
            raise UsageError(
                "trace.unwritable", path=str(path), detail=error.strerror or ""
            ) from None
        try:
            self._put(MAGIC + _COUNT.pack(len(text)) + text)
        except BaseException:
            self._file.close()
            raise

    def write(self, one: RoutedPass) -> None:
        """Append a pass.

        Raises:
            ResourceError: ``trace.disk``.
        """
        assert 1 <= len(one.tokens) <= MOST_TOKENS
        body = bytearray(_COUNT.pack(len(one.tokens)))
        for token in one.tokens:
            for layer in token.experts:
                body += bytes(layer)
        if self.header.probabilities:
            for token in one.tokens:
                assert token.probabilities is not None
                for of_layer in token.probabilities:
                    body += _fractions(of_layer)
        self._put(bytes(body) + _COUNT.pack(zlib.crc32(body)))

    def close(self) -> None:
        """Nothing follows."""
        self._file.close()

    def __enter__(self) -> TraceWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _put(self, data: bytes) -> None:
        try:
            while data:
                data = data[self._file.write(data) :]
        except OSError as error:
            raise ResourceError(
                "trace.disk", path=str(self.path), detail=error.strerror or ""
            ) from None


class TraceReader:
    """Reads a file pass by pass, every time it is iterated over."""

    def __init__(self, path: Path) -> None:
        """Read the header.

        Raises:
            UsageError: ``trace.unreadable``.
            IntegrityError: ``trace.invalid`` (path, offset, detail), now or while iterating.
        """
        self.path = path
        with self._open() as file:
            self.header = self._read_header(file)
            self._start = file.tell()

    def __iter__(self) -> Iterator[RoutedPass]:
        with self._open() as file:
            file.seek(self._start)
            while first := file.read(1):
                yield self._read_pass(file, first)

    def _open(self) -> IO[bytes]:
        try:
            return self.path.open("rb")
        except OSError as error:
            detail = error.strerror or ""
            raise UsageError("trace.unreadable", path=str(self.path), detail=detail) from None

    def _read_header(self, file: IO[bytes]) -> TraceHeader:
        if file.read(len(MAGIC)) != MAGIC:
            raise self._invalid(file, "it does not begin like one")
        (length,) = _COUNT.unpack(self._take(file, _COUNT.size))
        if length > _MOST_HEADER:
            raise self._invalid(file, "its header is too long")
        try:
            told = json.loads(self._take(file, length))
            header = TraceHeader(**{field.name: told[field.name] for field in fields(TraceHeader)})
            numbers = (header.layers, header.experts, header.top_k, header.listed)
            sound = all(type(one) is int for one in numbers) and header.is_sound()
            sound = sound and type(header.probabilities) is bool and type(header.model) is str
        except (ValueError, KeyError, TypeError, RecursionError):
            sound = False
        if not sound:
            raise self._invalid(file, "its header makes no sense")
        return header

    def _read_pass(self, file: IO[bytes], first: bytes) -> RoutedPass:
        start = first + self._take(file, _COUNT.size - 1)
        (count,) = _COUNT.unpack(start)
        if not 1 <= count <= MOST_TOKENS:
            raise self._invalid(file, f"a pass of {count} tokens")
        body = self._take(file, count * self.header.token_bytes)
        (checksum,) = _COUNT.unpack(self._take(file, _COUNT.size))
        if zlib.crc32(start + body) != checksum:
            raise self._invalid(file, "wrong checksum")
        tokens = tuple(self._tokens(body, count))
        if not all(self._can_be(token) for token in tokens):
            raise self._invalid(file, "experts that cannot be")
        return RoutedPass(tokens)

    def _tokens(self, body: bytes, count: int) -> Iterator[RoutedToken]:
        entries, listed = self.header.entries, self.header.listed
        fractions = _from_fractions(body[count * entries :])
        for start in range(0, count * entries, entries):
            experts = _rows(tuple(body[start : start + entries]), listed)
            probabilities = fractions[start : start + entries]
            yield RoutedToken(experts, _rows(probabilities, listed) if probabilities else None)

    def _can_be(self, token: RoutedToken) -> bool:
        header = self.header
        return all(
            len(set(row)) == header.listed and max(row) < header.experts for row in token.experts
        )

    def _take(self, file: IO[bytes], size: int) -> bytes:
        # A size may be nonsense: it is not asked for before it is known to be there.
        if size > os.fstat(file.fileno()).st_size - file.tell():
            raise self._invalid(file, "it ends in the middle of a pass")
        return file.read(size)

    def _invalid(self, file: IO[bytes], detail: str) -> IntegrityError:
        path, offset = str(self.path), file.tell()
        return IntegrityError("trace.invalid", path=path, offset=offset, detail=detail)


def _rows(values: tuple[Number, ...], size: int) -> tuple[tuple[Number, ...], ...]:
    return tuple(values[start : start + size] for start in range(0, len(values), size))


def _fractions(probabilities: Sequence[float]) -> bytes:
    values = array("H", (round(min(max(one, 0.0), 1.0) * _SCALE) for one in probabilities))
    if sys.byteorder == "big":
        values.byteswap()
    return values.tobytes()


def _from_fractions(data: bytes) -> tuple[float, ...]:
    values = array("H", data)
    if sys.byteorder == "big":
        values.byteswap()
    return tuple(value / _SCALE for value in values)
