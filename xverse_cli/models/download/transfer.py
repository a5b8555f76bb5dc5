"""Fetches files in parallel parts: workers receive, one thread hashes behind them, one makes
durable what has come, and the caller's thread shows how far it is."""

from __future__ import annotations

import re
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from xverse_cli.models.download.http import Body, StatusError, TransientError, origin
from xverse_cli.models.download.partial_file import PartialFile
from xverse_cli.models.download.parts import Part
from xverse_cli.models.download.patience import Patience
from xverse_cli.models.download.remote import Location, RemoteFile, refused, unreachable
from xverse_runtime.errors import IntegrityError

SHOW_S = 0.1
SYNC_S = 5.0
RETELL_S = 10.0
END_S = 2.0  # for threads to notice that it is over; those that still connect are left alone
_DIGEST = re.compile(r"(W/)?\"?(?P<hex>[0-9a-f]{40}|[0-9a-f]{64})\"?")
_MOVED = (401, 403, 404, 410)  # what a signed address answers when its time is over


@dataclass(frozen=True)
class Note:
    """Something that happened: a key of the catalogue and its facts."""

    key: str
    facts: dict[str, object]


@dataclass(frozen=True)
class Status:
    """How far one file is: bytes that are there, and bytes hashed.

    ``waiting``: why a part of it waits for its next try, and seconds until then.
    """

    file: RemoteFile
    done: int
    hashed: int
    waiting: tuple[str, float] | None = None

    @property
    def name(self) -> str:
        return self.file.name

    @property
    def size(self) -> int:
        return self.file.size


# For a file: where it is at each source that has the very same one, in the order to try them.
Locators = Callable[[RemoteFile, int], "Location | None"]


class Transfer:
    """Fetches a list of files.

    Args:
        locate: where a file is at the n-th source; ``None`` when there is no such source or it
            does not have the same bytes.
        jobs: connections at a time.
        show: called in the caller's thread, a few times a second, with how far each file is.
        note: called in the caller's thread with what happened.
    """

    def __init__(
        self,
        locate: Locators,
        jobs: int,
        patience: Patience,
        show: Callable[[list[Status]], None],
        note: Callable[[Note], None],
    ) -> None:
        self._locate = locate
        self._jobs = jobs
        self._patience = patience
        self._show = show
        self._note = note
        self._connections = patience.connections()
        self._stop = threading.Event()
        self._changed = threading.Condition()
        self._notes: deque[Note] = deque()
        self._error: BaseException | None = None
        self._open_bodies: set[Body] = set()
        self._files: Sequence[PartialFile] = ()
        self._told: dict[tuple[str, str], float] = {}
        self._whole: dict[str, threading.Lock] = {}
        self._waits: dict[tuple[str, int], tuple[str, float]] = {}  # why, and until when

    def run(self, files: Sequence[PartialFile], done: Callable[[PartialFile], None]) -> None:
        """Fetch ``files``; ``done`` is called in the caller's thread when one has its name.

        Raises:
            UnreachableError: no source answers any more.
            IntegrityError: ``pull.wrong_bytes`` or ``pull.remote_changed``.
            OSError: the disk.
        """
        self._files = files
        self._whole = {file.file.name: threading.Lock() for file in files}
        work = [
            threading.Thread(target=self._guard, args=(self._receive,)) for _ in range(self._jobs)
        ]
        work += [
            threading.Thread(target=self._guard, args=(job,)) for job in (self._hash, self._sync)
        ]
        for thread in work:
            thread.daemon = True
            thread.start()
        try:
            self._watch(done)
        finally:
            self._stop.set()
            for body in list(self._open_bodies):
                body.abort()
            deadline = time.monotonic() + END_S
            for thread in work:
                thread.join(timeout=max(0.0, deadline - time.monotonic()))
            self._connections.close()
        if self._error is not None:
            raise self._error

    def _watch(self, done: Callable[[PartialFile], None]) -> None:
        waiting = list(self._files)
        while waiting and self._error is None:
            with self._changed:
                self._changed.wait(SHOW_S)
            while self._notes:
                self._note(self._notes.popleft())
            self._show([self._status(file) for file in self._files])
            while waiting and waiting[0].finished:
                done(waiting.pop(0))

    def _status(self, file: PartialFile) -> Status:
        size, name = file.file.size, file.file.name
        if file.finished:
            return Status(file.file, size, size)
        now = time.monotonic()
        waits = [
            (why, till - now) for (whose, _), (why, till) in [*self._waits.items()] if whose == name
        ]
        waiting = min(waits, key=lambda wait: wait[1], default=None)
        return Status(file.file, file.done_bytes, file.hashed_bytes, waiting)

    def _guard(self, job: Callable[[], None]) -> None:
        """The first error of any thread ends them all."""
        try:
            job()
        except BaseException as error:
            if not self._stop.is_set():
                self._error = self._error or error
            self._stop.set()
        finally:
            self._wake()

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _tell(self, key: str, **facts: object) -> None:
        self._notes.append(Note(key, facts))

    def _tell_retry(self, name: str, reason: str, seconds: float) -> None:
        """Once for all connections that meet the same fate."""
        now, last = time.monotonic(), self._told.get((name, reason), -RETELL_S)
        if now - last >= RETELL_S:
            self._told[name, reason] = now
            self._tell("pull.retrying", name=name, reason=reason, seconds=f"{seconds:.0f}")

    # Receiving.

    def _receive(self) -> None:
        while not self._stop.is_set():
            claim = self._claim()
            if claim is None:
                if all(file.finished for file in self._files):
                    return
                self._stop.wait(0.05)  # a file may yet start over
                continue
            self._fetch(*claim)

    def _claim(self) -> tuple[PartialFile, Part] | None:
        with self._changed:
            for file in self._files:
                if file.unclaimed:
                    return file, file.unclaimed.pop(0)
        return None

    def _fetch(self, file: PartialFile, part: Part) -> None:
        """One part, with as many attempts as it takes."""
        failures, length = 0, part.end - part.start
        while not self._stop.is_set() and file.table.written(part.index) < length:
            before, source = file.table.written(part.index), file.source_index
            wait = None
            try:
                self._attempt(file, part)
                continue
            except TransientError as error:
                failures = failures + 1 if file.table.written(part.index) == before else 1
                reason, wait, reached = str(error), error.retry_after, error.reached
            except StatusError as error:
                if error.status not in _MOVED or not error.redirected or failures >= 3:
                    if self._locate(file.file, source + 1) is None:
                        raise _refused(error, file.file.name) from None
                    self._next_source(file, source, str(error), reached=True)
                    failures = 0
                    continue
                failures, reason, reached = failures + 1, str(error), True
            file.direct = None
            if failures >= self._patience.tries:
                self._next_source(file, source, reason, reached)
                failures = 0
                continue
            seconds = self._patience.wait(failures, wait)
            if failures > 1 or seconds > 5:
                self._tell_retry(file.file.name, reason, seconds)
            self._waits[file.file.name, part.index] = reason, time.monotonic() + seconds
            self._stop.wait(seconds)
            self._waits.pop((file.file.name, part.index), None)

    def _attempt(self, file: PartialFile, part: Part) -> None:
        direct = file.direct
        location = direct or self._locate(file.file, file.source_index)
        assert location is not None
        start = part.start + file.table.written(part.index)
        if start >= part.end:
            return  # another one has taken the whole file
        try:
            body = self._connections.get(location.url, location.headers, start, part.end)
        except StatusError as error:
            error.redirected = error.redirected or direct is not None
            raise
        self._open_bodies.add(body)
        if self._stop.is_set():
            body.abort()  # nobody else will
        whole = False
        try:
            _check_same(file.file, body)
            if origin(body.url) != origin(location.url):
                file.direct = Location(body.url, {})  # storage, which wants no credentials
            if body.start == start and (body.partial or part.end == file.file.size):
                file.receive(part, body)
                whole = True
            else:
                self._without_ranges(file, body)
        finally:
            self._open_bodies.discard(body)
            body.close(reusable=whole)

    def _without_ranges(self, file: PartialFile, body: Body) -> None:
        """The server sends all of it whatever was asked for: one thread takes it from the start."""
        lock = self._whole[file.file.name]
        if not lock.acquire(blocking=False):
            with lock:  # another one is at it; what it leaves undone is asked for again
                return
        try:
            if not file.whole_told:
                file.whole_told = True
                self._tell("pull.no_ranges", name=file.file.name)
            file.receive_all(body)
        finally:
            lock.release()

    def _next_source(self, file: PartialFile, failed: int, reason: str, reached: bool) -> None:
        """Go on from another source that has the same bytes.

        Raises:
            UnreachableError: there is none.
        """
        if self._locate(file.file, failed + 1) is None:
            raise unreachable(file.file.name, reason, reached=reached)
        with self._changed:
            if file.source_index != failed:
                return  # another thread did it
            file.source_index, file.direct = failed + 1, None
        self._tell("pull.other_source", name=file.file.name, reason=reason)

    # Hashing, and making durable.

    def _hash(self) -> None:
        for file in self._files:
            while not self._stop.is_set() and not self._hashed(file):
                pass

    def _hashed(self, file: PartialFile) -> bool:
        """Hash a file to its end and give it its name; whether it was right."""
        digest = file.file.new_digest()
        while file.hashed_bytes < file.file.size:
            if self._stop.is_set():
                return False
            if not file.hash_more(digest):
                with file.arrived:
                    file.arrived.wait(0.05)
        if file.is_right(digest):
            file.publish()
            self._wake()
            return True
        name = file.file.name
        file.wrong_times += 1
        with self._changed:
            file.start_over()
        if file.wrong_times > 1:
            if self._locate(file.file, file.source_index + 1) is None:
                raise IntegrityError("pull.wrong_bytes", name=name)
            file.source_index, file.wrong_times = file.source_index + 1, 0
        self._tell("pull.wrong_once", name=name)
        return False

    def _sync(self) -> None:
        while not self._stop.wait(SYNC_S):
            for file in self._files:
                # a disk that fails says so once: an error passed over here would not come again
                if not file.finished and file.done_bytes:
                    file.sync()


def _check_same(file: RemoteFile, body: Body) -> None:
    """Raises IntegrityError: ``pull.remote_changed``: the source has other bytes by now."""
    told = body.headers.get("x-linked-etag") or body.headers.get("etag") or ""
    match = _DIGEST.fullmatch(told)
    digest = match["hex"] if match else None
    known = file.sha256 if digest and len(digest) == 64 else file.git_id
    other = "x-linked-etag" in body.headers and digest and known and digest != known
    if other or (body.total is not None and body.total != file.size):
        raise IntegrityError("pull.remote_changed", name=file.name)


def _refused(error: StatusError, name: str) -> Exception:
    if error.status == 416:
        return IntegrityError("pull.remote_changed", name=name)
    return refused(error.status, name, error.host)
