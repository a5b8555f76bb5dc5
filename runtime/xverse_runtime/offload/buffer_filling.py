"""Experts that are not pinned, on their way to a buffer that uploads can read."""

from __future__ import annotations

import ctypes
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache

from torch import Tensor


def begin_filling(buffer: Tensor, block: Tensor) -> Future[None]:
    """Copy a block of the host to a buffer, in a thread; it may come from the disk."""
    return _filler().submit(_fill, buffer, block)


@cache
def _filler() -> ThreadPoolExecutor:
    """Reads experts that are not pinned, from the disk perhaps, while the host goes on."""
    return ThreadPoolExecutor(1, thread_name_prefix="experts")


def _fill(buffer: Tensor, block: Tensor) -> None:
    """With one thread, and without Python's lock: torch would bring threads of its own, beside
    those that compute."""
    ctypes.memmove(buffer.data_ptr(), block.data_ptr(), block.nbytes)
