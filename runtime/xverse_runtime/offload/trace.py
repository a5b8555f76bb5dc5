"""Routing traces: which experts the router chose, for each token and layer.

The file is written as the model runs, one frame a forward pass; docs/offload.md has it byte for
byte. Whatever is cut off between two frames is a shorter trace; anything else that is not as
written is an error.
"""

from __future__ import annotations

import json
import struct
import sys
import zlib
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import IO

from xverse_runtime.errors import IntegrityError, ResourceError, UsageError

MAGIC = b"XVROUTE1"
MOST_TOKENS = 1 << 20  # in a frame; more than any context holds
_MOST_HEADER = 1 << 16
_COUNT = struct.Struct("<I")
_SCALE = 65535  # a probability is a 16-bit fraction


@dataclass(frozen=True)
class TraceHeader:
    """The shape of a trace.

    ``listed`` experts are told of each token and layer, the most probable first; the first
    ``top_k`` of them were chosen, the others were next.
    """

    model: str
    layers: int
    experts: int
    top_k: int
    listed: int
    probabilities: bool

    @property
    def entries(self) -> int:
        """Experts listed for a token, in all layers."""
        return self.layers * self.listed

    @property
    def token_bytes(self) -> int:
        """Bytes of a token in the file."""
        return self.entries * (3 if self.probabilities else 1)

    def is_sound(self) -> bool:
        """Whether such a trace can be."""
        return 1 <= self.top_k <= self.listed <= self.experts <= 256 and 1 <= self.layers <= 1024


@dataclass(frozen=True)
class RoutedToken:
    """Of one token, for each layer: experts, and what the router gave them if that is known."""

    experts: tuple[tuple[int, ...], ...]
    probabilities: tuple[tuple[float, ...], ...] | None = None


@dataclass(frozen=True)
class RoutedPass:
    """The tokens of one forward pass: several of a prompt, or one."""

    tokens: tuple[RoutedToken, ...]


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
        self._put(MAGIC + _COUNT.pack(len(text)) + text)

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
    """Reads a file pass by pass; iterate once."""

    def __init__(self, path: Path) -> None:
        """Open a file and read its header.

        Raises:
            UsageError: ``trace.unreadable``.
            IntegrityError: ``trace.invalid`` (path, offset, detail), now or while iterating.
        """
        self.path = path
        try:
            self._file = path.open("rb")
        except OSError as error:
            raise UsageError(
                "trace.unreadable", path=str(path), detail=error.strerror or ""
            ) from None
        try:
            self.header = self._read_header()
        except BaseException:
            self._file.close()
            raise

    def __iter__(self) -> Iterator[RoutedPass]:
        with self._file:
            while first := self._file.read(1):
                yield self._read_pass(first)

    def _read_header(self) -> TraceHeader:
        if self._file.read(len(MAGIC)) != MAGIC:
            raise self._invalid("it does not begin like a routing trace")
        (length,) = _COUNT.unpack(self._take(_COUNT.size))
        if length > _MOST_HEADER:
            raise self._invalid("its header is too long")
        try:
            told = json.loads(self._take(length))
            header = TraceHeader(**{field.name: told[field.name] for field in fields(TraceHeader)})
            numbers = (header.layers, header.experts, header.top_k, header.listed)
            sound = all(type(one) is int for one in numbers) and header.is_sound()
            sound = sound and type(header.probabilities) is bool and type(header.model) is str
        except (ValueError, KeyError, TypeError, RecursionError):
            sound = False
        if not sound:
            raise self._invalid("its header makes no sense")
        return header

    def _read_pass(self, first: bytes) -> RoutedPass:
        start = first + self._take(_COUNT.size - 1)
        (count,) = _COUNT.unpack(start)
        if not 1 <= count <= MOST_TOKENS:
            raise self._invalid(f"a pass of {count} tokens")
        body = self._take(count * self.header.token_bytes)
        (checksum,) = _COUNT.unpack(self._take(_COUNT.size))
        if zlib.crc32(start + body) != checksum:
            raise self._invalid("wrong checksum")
        return RoutedPass(tuple(self._tokens(body, count)))

    def _tokens(self, body: bytes, count: int) -> Iterator[RoutedToken]:
        entries, listed = self.header.entries, self.header.listed
        fractions = _from_fractions(body[count * entries :])
        for token in range(count):
            experts = _rows(tuple(body[token * entries : (token + 1) * entries]), listed)
            for row in experts:
                if len(set(row)) < listed or max(row) >= self.header.experts:
                    raise self._invalid("experts that cannot be")
            probabilities = fractions[token * entries : (token + 1) * entries]
            yield RoutedToken(experts, _rows(probabilities, listed) if probabilities else None)

    def _take(self, size: int) -> bytes:
        data = self._file.read(size)
        if len(data) < size:
            raise self._invalid("it ends in the middle of a pass")
        return data

    def _invalid(self, detail: str) -> IntegrityError:
        offset = self._file.tell()
        return IntegrityError("trace.invalid", path=str(self.path), offset=offset, detail=detail)


def tokens_of(passes: Iterable[RoutedPass]) -> list[RoutedToken]:
    """All tokens, whatever pass they were computed in."""
    return [token for one in passes for token in one.tokens]


def _rows(values: tuple[int, ...] | tuple[float, ...], size: int) -> tuple[tuple[float, ...], ...]:
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
