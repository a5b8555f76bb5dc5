"""Filling host memory from files, by several threads."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType

import torch
from torch import Tensor

from xverse_runtime.mapped_files import MappedFiles, fill
from xverse_runtime.upload import PIECE_BYTES, reader_threads

Pairs = Iterable[tuple[Tensor, Tensor]]
Copies = Callable[[Pairs], None]  # as `HostReader.copy`


def copy_each(pairs: Pairs) -> None:
    """`HostReader.copy` by torch, from wherever the sources lie."""
    for source, target in pairs:
        target.copy_(source)


class HostReader:
    """Copies contiguous host tensors to others; use as a context."""

    def __init__(self, files: MappedFiles | None = None, readers: int | None = None) -> None:
        """
        Args:
            files: what sources are parts of; others are read where they lie.
            readers: threads; by default as many as an `Uploader` has.
        """
        self._files = files or MappedFiles()
        self._pool = ThreadPoolExecutor(readers or reader_threads(), "reading")

    def __enter__(self) -> HostReader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._pool.shutdown(cancel_futures=True)

    def copy(self, pairs: Pairs) -> None:
        """Copy every first tensor to the second, of the same dtype and size, and wait for all.

        Raises:
            IntegrityError: ``checkpoint.corrupt``: a file could not be read.
        """
        copies = [
            self._pool.submit(self._fill, source, target)
            for whole, place in pairs
            for source, target in _pieces(whole, place)
        ]
        try:
            for copy in copies:
                copy.result()
        finally:
            for copy in copies:
                copy.cancel()

    def _fill(self, source: Tensor, target: Tensor) -> None:
        fill(target, source, self._files.region(source))


def _pieces(source: Tensor, target: Tensor) -> Pairs:
    assert target.is_contiguous()
    step = PIECE_BYTES // source.element_size()
    return zip(torch.split(source.view(-1), step), torch.split(target.view(-1), step), strict=True)
