"""What must not happen while a CUDA graph is captured."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Protocol

# Calls of other threads that a capture cannot have beside it, like taking memory for another
# engine, do not end it; those of its own thread do.
ERROR_MODE = "thread_local"


class Graph(Protocol):
    """Of `torch.cuda.CUDAGraph` what is needed here."""

    def capture_begin(self, pool: Any = None, capture_error_mode: str = "global") -> None: ...

    def capture_end(self) -> None: ...


@contextmanager
def uncollected() -> Iterator[None]:
    """No garbage is collected meanwhile: with an engine that is in it pinned memory would be given
    back, which waits for the device, and that ends a capture of the same thread."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@contextmanager
def capturing(graph: Graph, pool: Any) -> Iterator[None]:
    """Computations of the current stream are kept in ``graph`` instead of being done.

    Not `torch.cuda.graph`: that collects garbage and empties caches, for each of many graphs.

    Args:
        graph: a new one.
        pool: of memory, shared with other graphs.

    Raises:
        BaseException: what was raised within, as it is.
        RuntimeError: something cannot be captured.
    """
    with uncollected():
        graph.capture_begin(pool=pool, capture_error_mode=ERROR_MODE)
        try:
            yield
        except BaseException:
            with suppress(RuntimeError):  # that the capture was broken off
                graph.capture_end()
            raise
        graph.capture_end()
