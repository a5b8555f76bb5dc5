"""Compiling many versions of kernels at once, in processes.

Threads would do for the compiler, but they hold Python's lock in between, which weights are loaded
with meanwhile; they cannot be ended before they are through; and a compiler that crashes would take
the program with it.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from xverse_kernels.triton import compile_worker
from xverse_kernels.triton.versions import Version, cached_version

MOST_WORKERS = 8  # the slowest kernel then takes about as long as all others
END_WITHIN_S = 1.0  # what is left by then looks into the cache, and ends by itself
WORKER = Path(compile_worker.__file__)


class Compilation:
    """Versions on their way from Triton's cache or its compiler; begins at once, in the background.

    What cannot be compiled is left to its launch, whose error is the ordinary one.
    """

    def __init__(
        self,
        versions: Sequence[Version],
        find_target: Callable[[], Any],
        *,
        workers: int | None = None,
    ) -> None:
        """
        Args:
            versions: to compile.
            find_target: gives the ``GPUTarget``; called by a thread.
            workers: processes at once; by default one for each core but one.
        """
        self.compiled: dict[Version, Any] = {}  # so far
        self.total = 0  # versions that were in no cache, once that is known
        self.done = 0  # of these
        self._versions = versions
        self._find_target = find_target
        self._workers = min(MOST_WORKERS, max(1, _cores() - 1)) if workers is None else workers
        self._waiting: deque[Version] = deque()
        self._processes: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="compile", daemon=True)
        self._thread.start()

    def wait(self, seconds: float) -> bool:
        """Whether it is over, at the latest after ``seconds``."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def close(self) -> None:
        """End it, wherever it is."""
        with self._lock:
            self._closed = True
            for process in self._processes:
                _kill(process)
        self._thread.join(END_WITHIN_S)

    def _run(self) -> None:
        try:
            target = self._find_target()
        except Exception:  # the first launch asks for it too
            return
        missing = []
        for version in self._versions:
            if self._closed:
                return
            if not self._take(version, target):
                missing.append(version)
        # what takes longest comes first, so that nothing long is left for the end
        self._waiting.extend(sorted(missing, key=lambda one: not one.has_products))
        self.total = len(missing)
        threads = [
            threading.Thread(target=self._serve, args=(target,), name="compile", daemon=True)
            for _ in range(min(self._workers, len(missing)))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _take(self, version: Version, target: Any) -> bool:
        compiled = cached_version(version, target)
        if compiled is not None:
            self.compiled[version] = compiled
        return compiled is not None

    def _serve(self, target: Any) -> None:
        """Have a process compile what waits; if it crashes, another one goes on after that."""
        while self._waiting:
            process = self._start()
            if process is None:
                return
            try:
                served = self._feed(process, target)
            finally:
                with self._lock:
                    self._processes.discard(process)
                    _kill(process)
                for stream in (process.stdin, process.stdout):
                    if stream is not None:
                        with suppress(OSError):
                            stream.close()
                process.wait()
            if not served:
                return  # it cannot even begin: its successor could not either

    def _start(self) -> subprocess.Popen[bytes] | None:
        with self._lock:
            if self._closed:
                return None
            try:
                process = subprocess.Popen(
                    [sys.executable, str(WORKER)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    start_new_session=True,  # Ctrl-C is not for it, and its children end with it
                )
            except OSError:
                return None
            self._processes.add(process)
            return process

    def _feed(self, process: subprocess.Popen[bytes], target: Any) -> int:
        """How many versions it has answered for when there are no more, or it has ended."""
        served = 0
        assert process.stdin is not None
        assert process.stdout is not None
        fields = (target.backend, target.arch, target.warp_size)
        requests = pickle.dumps(sys.path) + pickle.dumps(fields)
        while True:
            try:
                version = self._waiting.popleft()
            except IndexError:
                return served
            try:
                process.stdin.write(requests + pickle.dumps(version))
                process.stdin.flush()
                answer = process.stdout.readline()
            except OSError:
                answer = b""
            if answer == compile_worker.DONE:
                self._take(version, target)
            with self._lock:
                self.done += 1
            if not answer:
                return served
            served += 1
            requests = b""


def _cores() -> int:
    """Those that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _kill(process: subprocess.Popen[bytes]) -> None:
    """A worker, and an assembler that it may have started."""
    with suppress(OSError):
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
