"""The exit codes of `xverse`, and which error leads to which."""

from __future__ import annotations

import errno

from xverse_runtime.errors import (
    ContextOverflowError,
    IntegrityError,
    ModelNotFoundError,
    ResourceError,
    UsageError,
)

DONE = 0
ERROR = 1
USAGE = 2
MODEL_MISSING = 3
INTEGRITY = 4
RESOURCES = 5
CONTEXT_OVERFLOW = 6
PARTLY_FAILED = 7
INTERRUPTED = 130

_DISK_FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))
_BY_CLASS: tuple[tuple[type[Exception], int], ...] = (
    (UsageError, USAGE),
    (ModelNotFoundError, MODEL_MISSING),
    (IntegrityError, INTEGRITY),
    (ResourceError, RESOURCES),
    (MemoryError, RESOURCES),
    (ContextOverflowError, CONTEXT_OVERFLOW),
)


def exit_code(error: BaseException) -> int:
    """The exit code that stands for ``error``."""
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    if isinstance(error, OSError) and error.errno in _DISK_FULL:
        return RESOURCES
    return next((code for kind, code in _BY_CLASS if isinstance(error, kind)), ERROR)
