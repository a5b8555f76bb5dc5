"""What happens around a capture, with a graph that only notes it."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch

from xverse_runtime.graph_capture import ERROR_MODE, capturing, uncollected
from xverse_runtime.offload.pieces import Pieces, Recording


class NotedGraph:
    def __init__(self, fails: bool = False) -> None:
        self.did: list[str] = []
        self._fails = fails

    def capture_begin(self, pool: Any = None, capture_error_mode: str = "global") -> None:
        assert pool == "pool"
        assert capture_error_mode == ERROR_MODE == "thread_local"
        self.did.append("began")

    def capture_end(self) -> None:
        self.did.append("ended")
        if self._fails:
            raise RuntimeError("operation failed due to a previous error during capture")


class Cycle:
    def __init__(self) -> None:
        self.itself = self


def test_nothing_is_collected_while_a_graph_is_captured() -> None:
    gc.collect()
    gone = weakref.ref(Cycle())
    with capturing(NotedGraph(), "pool"):
        assert not gc.isenabled()
        for _ in range(3 * gc.get_threshold()[0]):
            Cycle()
        assert gone() is not None
    assert gc.isenabled()
    gc.collect()
    assert gone() is None


def test_collecting_stays_off_where_it_was() -> None:
    gc.disable()
    try:
        with uncollected():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_the_error_that_broke_a_capture_off_is_the_one_that_is_told() -> None:
    graph = NotedGraph(fails=True)
    with pytest.raises(torch.OutOfMemoryError, match="96 MiB"), capturing(graph, "pool"):
        raise torch.OutOfMemoryError("Tried to allocate 96 MiB")
    assert graph.did == ["began", "ended"]
    assert gc.isenabled()


def test_a_capture_that_fails_at_its_end_is_an_error() -> None:
    with (
        pytest.raises(RuntimeError, match="during capture"),
        capturing(NotedGraph(fails=True), "pool"),
    ):
        pass
    assert gc.isenabled()


class Fails:
    """A recorder that always says the same."""

    def __init__(self, error: RuntimeError) -> None:
        self._error = error

    def record(self, work: Callable[[], Any]) -> tuple[Recording, Any]:
        raise self._error


def test_no_memory_for_a_graph_is_no_reason_to_do_without_graphs() -> None:
    """Others give up what they can, as for any other computation, and the step is begun anew."""
    told: list[RuntimeError] = []
    pieces = Pieces(Fails(torch.OutOfMemoryError("CUDA out of memory")), told.append)
    pieces.begin()
    assert pieces.run(lambda: 1) == 1
    pieces.end()
    for _ in range(2):
        pieces.begin()
        with pytest.raises(torch.OutOfMemoryError):
            pieces.run(lambda: 2)
    assert told == []


def test_what_cannot_be_captured_is_told_and_computed() -> None:
    error = RuntimeError("operation not permitted when stream is capturing")
    told: list[RuntimeError] = []
    pieces = Pieces(Fails(error), told.append)
    for value in range(3):
        pieces.begin()
        assert pieces.run(lambda value=value: value) == value
        pieces.end()
    assert told == [error]
