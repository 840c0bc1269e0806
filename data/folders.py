"""Data sets that the code writes itself: a folder appears whole or not at all."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path


def write_folder(
    root: str | Path,
    is_complete: Callable[[Path], bool],
    fill: Callable[[Path], None],
    may_replace: Callable[[Path], bool] = lambda root: False,
) -> Path:
    """The folder ``root``, filled by ``fill`` unless ``is_complete`` says that there is nothing to do.

    ``fill`` writes into a new folder beside it, which is renamed at the end. Several processes may call this at once:
    one writes, the others wait for it.

    Args:
        may_replace: whether what lies at ``root``, not complete, was written by this code and may go.

    Raises:
        FileExistsError: something else lies at ``root``; it is left alone.
    """
    root = Path(root)
    if is_complete(root):
        return root
    root.parent.mkdir(parents=True, exist_ok=True)
    with _alone_in(root.parent):
        if is_complete(root):
            return root
        occupied = root.exists() and not (root.is_dir() and not any(root.iterdir()))
        if occupied and not may_replace(root):
            raise FileExistsError(f"{root} exists and does not hold this data; remove it or choose another DATA.ROOT")
        beside = Path(tempfile.mkdtemp(dir=root.parent, prefix=f".{root.name}."))
        former = beside.with_name(f"{beside.name}.former")
        try:
            fill(beside)
            beside.chmod(0o755)
            if occupied:
                root.replace(former)
            try:
                beside.replace(root)
            except OSError:
                if not is_complete(root):  # else another process was faster
                    raise
        finally:
            shutil.rmtree(beside, ignore_errors=True)
            shutil.rmtree(former, ignore_errors=True)
    return root


@contextlib.contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """One process at a time; where the file system has no locks, several may write, and the rename decides."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
