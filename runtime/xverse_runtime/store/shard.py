"""Writing one safetensors file of a store as a stream, hashed on the way.

The header is padded with spaces so that the data begins on a page, and tensors are written in the
order given: expert blocks, which come first, then lie on page boundaries.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from xverse_runtime.durable import sync_directory, write_durably
from xverse_runtime.store.manifest import FileRecord

PAGE = 4096
DTYPE_NAMES = {
    torch.uint8: "U8",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
}


@dataclass(frozen=True)
class TensorSpec:
    """Name, dtype and shape of a tensor in a shard."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        count = self.dtype.itemsize
        for size in self.shape:
            count *= size
        return count


class ShardWriter:
    """Writes ``path`` under a temporary name; it appears, complete and on disk, on success only.

    Call `write` with the tensors' bytes in order, in pieces of any size.
    """

    def __init__(self, path: Path, specs: list[TensorSpec]) -> None:
        self._path = path
        self._temporary = path.with_name(path.name + ".tmp")
        self._expected = sum(spec.nbytes for spec in specs)
        self._written = 0
        self._hash = hashlib.sha256()
        self._header = _header(specs)
        self.record: FileRecord | None = None

    def __enter__(self) -> ShardWriter:
        self._file = self._temporary.open("wb")
        self._put(self._header)
        return self

    def write(self, data: Tensor) -> None:
        """Append a contiguous CPU tensor's bytes."""
        assert data.is_contiguous()
        # torch's way to bytes without a copy is numpy, which is no dependency of the runtime.
        self._put(memoryview((ctypes.c_char * data.nbytes).from_address(data.data_ptr())))
        self._written += data.nbytes

    def _put(self, data: bytes | memoryview) -> None:
        self._file.write(data)
        self._hash.update(data)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                assert self._written == self._expected, "a shard must get all of its tensors"
                self._file.flush()
                os.fsync(self._file.fileno())
        finally:
            self._file.close()
        if kind is not None:
            self._temporary.unlink(missing_ok=True)
            return
        size = len(self._header) + self._expected
        self._temporary.replace(self._path)
        sync_directory(self._path.parent)
        self.record = FileRecord(size, self._hash.hexdigest())


def write_small(path: Path, data: bytes) -> FileRecord:
    """`write_durably`, and what the manifest says of it."""
    write_durably(path, data)
    return FileRecord(len(data), hashlib.sha256(data).hexdigest())


def shard_bytes(specs: list[TensorSpec]) -> int:
    """The size of the file that these tensors make."""
    return len(_header(specs)) + sum(spec.nbytes for spec in specs)


def _header(specs: list[TensorSpec]) -> bytes:
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for spec in specs:
        end = offset + spec.nbytes
        entries[spec.name] = {
            "dtype": DTYPE_NAMES[spec.dtype],
            "shape": list(spec.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    padded = -(-(8 + len(text)) // PAGE) * PAGE - 8
    return padded.to_bytes(8, "little") + text.ljust(padded)
