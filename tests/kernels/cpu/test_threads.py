"""The pool of threads, and programs that do more than compute."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from tests.kernels.cpu.support import (
    SETS,
    expert_blocks,
    matrix,
    needs_extension,
    norm_of,
    randn,
    route_randomly,
)
from xverse_kernels.cpu import extension
from xverse_kernels.cpu.backend import CpuBackend
from xverse_kernels.cpu.extension import native, physical_cores
from xverse_kernels.packing import INT4, INT8
from xverse_kernels.types import Projection


def test_threads_are_counted(fastest: CpuBackend) -> None:
    for wished, got in ((3, 3), (1, 1), (0, 1), (-5, 1), (2, 2), (2, 2)):
        assert fastest.set_threads(wished) == got
        assert native.threads() == got


def test_a_system_that_starts_no_more_threads(fastest: CpuBackend) -> None:
    """What there is serves."""
    assert 1 <= fastest.set_threads(10**6) <= 256
    routed = route_randomly(5, 64, 3, 2)
    out = fastest.experts(routed, expert_blocks(3, 64, 96, INT4), torch.zeros(5, 64))
    assert out.isfinite().all()


def test_more_threads_than_work(fastest: CpuBackend) -> None:
    layer, x = [Projection(matrix(16, 32, INT8))], randn(1, 32)
    alone = fastest.linear(x, layer)
    fastest.set_threads(9)
    for _ in range(50):
        assert torch.equal(fastest.linear(x, layer), alone)


def test_sleeping_threads_wake(fastest: CpuBackend) -> None:
    layer, x = [Projection(matrix(640, 96, INT8))], randn(3, 96)
    alone = fastest.linear(x, layer)
    fastest.set_threads(3)
    for pause in (0, 0.0001, 0.0003, 0.001, 0.02):
        for _ in range(5):
            time.sleep(pause)
            assert torch.equal(fastest.linear(x, layer), alone)


def test_the_pool_changes_its_size_between_calls(fastest: CpuBackend) -> None:
    layer, x = [Projection(matrix(640, 96, INT4))], randn(3, 96)
    alone = fastest.linear(x, layer)
    for call in range(60):
        fastest.set_threads(1 + call * 7 % 5)
        assert torch.equal(fastest.linear(x, layer), alone)


def test_calls_from_two_threads_at_once(fastest: CpuBackend) -> None:
    fastest.set_threads(2)
    experts = expert_blocks(4, 96, 64, INT4)
    cases = [route_randomly(tokens, 96, 4, 2, seed=tokens) for tokens in (1, 13)]
    right = [fastest.experts(one, experts, torch.zeros(one.normed.shape)) for one in cases]
    wrong: list[int] = []

    def compute(case: int) -> None:
        for _ in range(100):
            routed = cases[case]
            out = fastest.experts(routed, experts, torch.zeros(routed.normed.shape))
            if not torch.equal(out, right[case]):
                wrong.append(case)

    threads = [threading.Thread(target=compute, args=(case,)) for case in (0, 1)]
    for thread in threads:
        thread.start()
    for _ in range(20):
        fastest.set_threads(3)
        fastest.set_threads(2)
    for thread in threads:
        thread.join()
    assert wrong == []


def test_the_interpreter_runs_meanwhile(fastest: CpuBackend) -> None:
    """A call lets other Python threads go on."""
    layer, x = [Projection(matrix(4096, 512, INT8))], randn(256, 512)
    done = threading.Event()
    ticks = 0

    def compute() -> None:
        for _ in range(5):
            fastest.linear(x, layer)
        done.set()

    thread = threading.Thread(target=compute)
    thread.start()
    while not done.wait(0.001):
        ticks += 1
    thread.join()
    assert ticks > 3


class StopError(Exception):
    pass


def test_a_call_that_is_broken_off_leaves_no_trace(fastest: CpuBackend) -> None:
    fastest.set_threads(2)
    experts, routed = expert_blocks(3, 64, 96, INT4), route_randomly(5, 64, 3, 2)
    layer, norm, residual = [Projection(matrix(64, 64, INT4))], norm_of(64), torch.zeros(5, 64)

    def stop() -> None:
        raise StopError

    operations = (
        lambda between: fastest.experts(routed, experts, residual, between),
        lambda between: fastest.experts(routed, list(experts), residual, between),
        lambda between: fastest.mlp(residual, norm, experts, residual, between),
        lambda between: fastest.linear(routed.normed, layer, norm=norm, between=between),
    )
    for operation in operations:
        before = operation(None)
        with pytest.raises(StopError):
            operation(stop)
        assert torch.equal(operation(lambda: None), before)


FORKED = """
import os, sys, threading
import torch
from xverse_kernels.cpu.backend import CpuBackend
from xverse_kernels.packing import INT8, PackedMatrix, pack_matrix
from xverse_kernels.types import Projection

kernels = CpuBackend()
layer = [Projection(PackedMatrix(pack_matrix(torch.randn(320, 64), INT8), 320, 64, INT8))]
x = torch.randn(3, 64)

def failures(busy):
    right = kernels.linear(x, layer)
    stop = threading.Event()

    def compute():
        while not stop.is_set():
            kernels.linear(x, layer)

    beside = threading.Thread(target=compute)
    if busy:
        beside.start()
    failed = 0
    for _ in range(10):
        child = os.fork()
        if child == 0:
            same = torch.equal(kernels.linear(x, layer), right)
            kernels.set_threads(2)
            same = same and torch.equal(kernels.linear(x, layer), right)
            os._exit(0 if same else 1)
        failed += os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0
    stop.set()
    if busy:
        beside.join()
    assert torch.equal(kernels.linear(x, layer), right)
    return failed

print(failures(sys.argv[1] == "busy"), "failed")
for threads in (1, 3):
    kernels.set_threads(threads)
    print(failures(sys.argv[1] == "busy"), "failed of", threads, "threads")
"""


@needs_extension
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.parametrize("beside", ["idle", "busy"])
def test_a_forked_child_computes(beside: str) -> None:
    """Before any thread was asked for, and then with one and with three."""
    command = [sys.executable, "-W", "ignore", "-c", FORKED, beside]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    expected = ["0 failed", "0 failed of 1 threads", "0 failed of 3 threads"]
    assert result.stdout.splitlines() == expected, result.stderr


@needs_extension
def test_a_program_ends_while_threads_wait() -> None:
    program = "from xverse_kernels.cpu.extension import native; native.set_threads(4)"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


@needs_extension
def test_unknown_instructions_are_refused() -> None:
    with pytest.raises(ValueError, match="this processor has no sse9"):
        CpuBackend("sse9")
    with pytest.raises(TypeError):
        native.linear(0.0, 1, 2)
    assert SETS[-1] == "portable"


def test_without_the_extension_there_are_no_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extension, "native", None)
    monkeypatch.setattr(extension, "_missing", "No module named '_native'")
    assert extension.instruction_sets() == []
    assert "C compiler" in (extension.why_missing() or "")


def topology(root: Path, siblings: dict[int, str]) -> Path:
    for cpu, shared in siblings.items():
        folder = root / f"cpu{cpu}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(f"{shared}\n", encoding="ascii")
    return root


@pytest.mark.parametrize(
    ("allowed", "siblings", "cores"),
    [
        ({0, 1, 2, 3}, {0: "0,2", 1: "1,3", 2: "0,2", 3: "1,3"}, 2),
        ({0, 2}, {0: "0,2", 1: "1,3", 2: "0,2", 3: "1,3"}, 1),
        ({0, 1}, {0: "0", 1: "1"}, 2),
        ({0, 1, 2}, {}, 3),
        ({5}, {5: "5-6"}, 1),
    ],
)
def test_physical_cores(
    allowed: set[int],
    siblings: dict[int, str],
    cores: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: allowed, raising=False)
    assert physical_cores(topology(tmp_path, siblings)) == cores
