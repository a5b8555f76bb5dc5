"""The place where a store is made: one writer at a time, and its final name only when complete.

Everything is written into ``<output>.partial`` under the lock ``<output>.lock``, which stands
beside the folder so that it can be held over the rename.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from xverse_runtime.durable import NO_SPACE, NOT_WRITABLE, sync_directory
from xverse_runtime.errors import ResourceError, UsageError
from xverse_runtime.store.journal import JOURNAL_FILE


def partial_of(output: Path) -> Path:
    """The folder in which the store at ``output`` is made."""
    return output.with_name(output.name + ".partial")


@contextmanager
def sole_writer(output: Path) -> Iterator[None]:
    """Hold the lock of ``output``; its folder is created where needed.

    Raises:
        UsageError: ``store.busy``: another process is making this store.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    lock = output.with_name(output.name + ".lock")
    try:
        with FileLock(lock, timeout=0):
            try:
                yield
            finally:
                _remove_lock(lock, output)
    except Timeout:
        raise UsageError("store.busy", path=str(output)) from None


def _remove_lock(lock: Path, output: Path) -> None:
    """Remove the lock that is held, once there is a store: whoever gets hold of the removed file
    finds the store and stops. Before that two processes could hold two files of the same name."""
    if os.path.lexists(output):
        with suppress(OSError):  # Windows does not remove what is open
            lock.unlink()


def refuse_existing(output: Path) -> None:
    """Raises UsageError: ``store.target_exists``."""
    if os.path.lexists(output):
        raise UsageError("store.target_exists", path=str(output))


def refuse_foreign(partial: Path, source: Path) -> None:
    """A folder that no conversion has begun is somebody's, perhaps the source itself.

    Raises:
        UsageError: ``store.target_exists``.
    """
    if not os.path.lexists(partial):
        return
    is_source = partial.resolve() == source
    names = {entry.name for entry in partial.iterdir()} if partial.is_dir() else {""}
    # the record is the first thing that a conversion writes, under a temporary name at first
    begun = JOURNAL_FILE in names or names <= {JOURNAL_FILE + ".tmp"}
    if is_source or not begun:
        raise UsageError("store.target_exists", path=str(partial))


def publish(partial: Path, output: Path) -> None:
    """Give the finished folder its name, for good; what is in it is on disk already."""
    refuse_existing(output)
    partial.rename(output)
    sync_directory(output.parent)


def check_space(folder: Path, needed: int) -> None:
    """Raises ResourceError: ``store.disk_full``."""
    free = _free_bytes(folder)
    if needed > free:
        raise ResourceError(
            "store.disk_full", path=str(folder), needed_bytes=needed, free_bytes=free
        )


@contextmanager
def writing(folder: Path, needed: int) -> Iterator[None]:
    """Turns what the file system refuses into errors that say what to do.

    Raises:
        ResourceError: ``store.disk_full``; ``needed`` is the size of everything to be written.
        UsageError: ``store.not_writable``.
    """
    try:
        yield
    except OSError as error:
        if error.errno in NO_SPACE:
            raise ResourceError(
                "store.disk_full",
                path=str(folder),
                needed_bytes=needed,
                free_bytes=_free_bytes(folder),
            ) from None
        if error.errno in NOT_WRITABLE:
            detail = error.strerror or "permission denied"
            raise UsageError("store.not_writable", path=str(folder), detail=detail) from None
        raise


def _free_bytes(folder: Path) -> int:
    """Of the disk that ``folder`` is on, or will be: it may not be there yet."""
    present = next(one for one in (folder, *folder.parents) if one.exists())
    return shutil.disk_usage(present).free
