"""Locks between processes that end with the process, whatever ends it; where a system has them."""

from __future__ import annotations

import errno
import os
from typing import IO, Any

try:
    import fcntl
except ImportError:  # not a Unix
    fcntl = None  # type: ignore[assignment]


def lock_file(stream: IO[Any]) -> None:
    """Locks a file that is open for writing, without waiting; the lock is not inherited.

    Raises:
        BlockingIOError, PermissionError: another process has it.
        OSError: the system, or the file's, has no locks.
    """
    _require()
    fcntl.lockf(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)


def lock_folder(descriptor: int) -> None:
    """Locks an open folder, and waits for it.

    Raises:
        OSError: the system, or the folder's, has no locks.
    """
    _require()
    fcntl.flock(descriptor, fcntl.LOCK_EX)


def _require() -> None:
    if fcntl is None:
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))
