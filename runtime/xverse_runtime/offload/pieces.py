"""Parts of a decoded token as CUDA graphs, with the host's work between them.

A step runs the same parts in the same order. The first one runs them as they are: that compiles
kernels and sizes buffers. The second captures each part and replays it at once; from then on they
are replayed. What a part returns stays in the memory that it was captured with, where the parts
after it read it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar, cast
from weakref import WeakSet

import torch

from xverse_runtime.graph_capture import capturing

T = TypeVar("T")


class Recording(Protocol):
    """A captured part."""

    def replay(self) -> None:
        """Ask for its computations once more."""


class Recorder(Protocol):
    """Captures computations instead of having them done."""

    def record(self, work: Callable[[], T]) -> tuple[Recording, T]:
        """Call ``work``, whose computations are kept, not done.

        Raises:
            torch.OutOfMemoryError: there is no room for what it computes.
            RuntimeError: something in it cannot be captured; nothing was computed.
        """


class Pieces:
    """The parts of one kind of step. Use `step` around each."""

    def __init__(
        self,
        recorder: Recorder | None,
        on_failure: Callable[[RuntimeError], None] = lambda _error: None,
    ) -> None:
        """Without a recorder, or once it has failed, parts simply run."""
        self._recorder = recorder
        self._on_failure = on_failure
        self._recorded: list[tuple[Recording, Any]] = []
        self._steps = 0
        self._next = 0

    def begin(self) -> None:
        """A step begins. If the one that was captured broke off, capture anew; what is not going
        to be replayed gives its memory back."""
        if self._steps == 1 or self._recorder is None:
            self._recorded.clear()
        self._next = 0

    def end(self) -> None:
        """The step is whole."""
        self._steps += 1

    def run(self, work: Callable[[], T]) -> T:
        """The next part; its result, which the next step overwrites.

        Raises:
            torch.OutOfMemoryError: also while capturing: others may give memory up for that.
        """
        if self._recorder is None or self._steps == 0:
            return work()
        number = self._next
        self._next += 1
        if number == len(self._recorded):
            try:
                self._recorded.append(self._recorder.record(work))
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                self._recorder = None  # parts that were captured keep their memory for this step
                self._on_failure(error)
                return work()
        recording, result = self._recorded[number]
        recording.replay()
        return cast(T, result)


class GraphRecorder:
    """Captures CUDA graphs that share one pool of memory."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._pool: Any = None
        self._graphs: WeakSet[torch.cuda.CUDAGraph] = WeakSet()  # that share the pool

    def record(self, work: Callable[[], T]) -> tuple[Recording, T]:
        """See `Recorder`."""
        if not self._graphs:  # a pool that nobody uses any more cannot be used again
            self._pool = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        self._graphs.add(graph)
        current = torch.cuda.current_stream()
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream), capturing(graph, self._pool):
            result = work()
        current.wait_stream(self._stream)
        return graph, result
