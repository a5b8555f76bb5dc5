"""Which tensors are views of which files, so that loading can read a file rather than its mapping.

A mapping is read by page faults, one after the other, and where a file has become shorter or a disk
fails, a signal ends the program. A read has neither fault.
"""

from __future__ import annotations

import ctypes
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from safetensors import safe_open
from torch import Tensor, UntypedStorage

from xverse_runtime.errors import IntegrityError

READS = hasattr(os, "preadv")  # not on Windows


@dataclass(frozen=True)
class FileRegion:
    """Bytes of an open file. ``descriptor`` is the file's, ``name`` what messages call it."""

    descriptor: int
    name: str
    offset: int
    nbytes: int

    def read_into(self, memory: memoryview) -> None:
        """Fill ``memory`` [nbytes] from the file; other threads run meanwhile.

        Raises:
            IntegrityError: ``checkpoint.corrupt``: the file ends too early or the disk fails.
        """
        done = 0
        while done < self.nbytes:
            try:
                count = os.preadv(self.descriptor, [memory[done:]], self.offset + done)
            except OSError as error:
                raise self._corrupt(error.strerror or str(error)) from None
            if count == 0:
                at = self.offset + self.nbytes
                raise self._corrupt(f"it ends at {self.offset + done} bytes, before {at}")
            done += count

    def _corrupt(self, detail: str) -> IntegrityError:
        return IntegrityError("checkpoint.corrupt", path=self.name, detail=detail)


@dataclass(frozen=True)
class _Origin:
    storage: UntypedStorage  # kept, so that its identity stays its own
    descriptor: int
    name: str
    offset: int  # of the storage's first byte


class MappedFiles:
    """The files of a model while it is loaded; use as a context."""

    def __init__(self) -> None:
        self._origins: dict[int, _Origin] = {}
        self._descriptors: list[int] = []

    def __enter__(self) -> MappedFiles:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the files; tensors stay mapped, and are read through their mapping from now on."""
        self._origins.clear()
        while self._descriptors:
            os.close(self._descriptors.pop())

    def note(
        self, path: Path, name: str, tensors: Mapping[str, Tensor], offsets: Mapping[str, int]
    ) -> None:
        """Remember where the tensors of a file are from.

        Args:
            path: the file.
            name: for messages.
            tensors: views of it.
            offsets: where each tensor's storage begins in it, of those of which that is known.
        """
        if not READS:
            return
        descriptor = os.open(path, os.O_RDONLY)
        self._descriptors.append(descriptor)
        if hasattr(os, "posix_fadvise"):  # not on macOS
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_SEQUENTIAL)
        for key, offset in offsets.items():
            storage = tensors[key].untyped_storage()
            self._origins[id(storage)] = _Origin(storage, descriptor, name, offset)

    def region(self, tensor: Tensor) -> FileRegion | None:
        """Where the bytes of a contiguous tensor are, if it is a part of one that was noted."""
        storage = tensor.untyped_storage()
        origin = self._origins.get(id(storage))
        if origin is None or not tensor.is_contiguous():
            return None
        offset = origin.offset + int(tensor.storage_offset()) * tensor.element_size()
        return FileRegion(origin.descriptor, origin.name, offset, tensor.nbytes)


def map_safetensors(path: Path, name: str, files: MappedFiles | None = None) -> dict[str, Tensor]:
    """All tensors of a safetensors file, as views of it.

    Args:
        path: the file.
        name: for messages of later reads.
        files: told of them.

    Raises:
        SafetensorError, OSError, ValueError, RuntimeError: of whatever noticed the damage.
    """
    with safe_open(path, framework="pt", device="cpu") as shard:
        tensors = {key: shard.get_tensor(key) for key in shard.keys()}  # noqa: SIM118
    if files is not None:
        first = _data_offsets(path)
        offsets = {
            key: first[key] - int(tensor.storage_offset()) * tensor.element_size()
            for key, tensor in tensors.items()
        }
        files.note(path, name, tensors, offsets)
    return tensors


def fill(memory: Tensor, source: Tensor, region: FileRegion | None) -> None:
    """Copy a contiguous tensor's bytes to the front of ``memory`` uint8, by one thread.

    Args:
        memory: of the host.
        source: as long as ``memory``, or shorter.
        region: where the source is in a file: it is read from there.

    Raises:
        IntegrityError: as `FileRegion.read_into`.
    """
    assert source.is_contiguous()
    assert source.nbytes <= memory.nbytes
    if region is None:  # ctypes lets other threads run, and torch would call all of its own
        ctypes.memmove(memory.data_ptr(), source.data_ptr(), source.nbytes)
        return
    # torch's way to bytes without a copy is numpy, which is no dependency of the runtime
    raw = (ctypes.c_char * source.nbytes).from_address(memory.data_ptr())
    region.read_into(memoryview(raw).cast("B"))


def _data_offsets(path: Path) -> dict[str, int]:
    """Where each tensor of a sound safetensors file begins, from the file's first byte."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
    return {
        key: 8 + size + entry["data_offsets"][0]
        for key, entry in header.items()
        if key != "__metadata__"
    }
