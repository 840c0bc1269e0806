"""Files and folders that are either whole or not there, whenever a process dies."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from .errors import ConfigError
from .locks import lock_folder


def write_then_rename(path: Path, write: Callable[[Path], object]) -> None:
    """Calls ``write`` on a name beside ``path``, flushes it to the disk, then renames it over ``path``.

    What a killed process leaves behind, ``sweep`` removes.

    Raises:
        OSError: it cannot be written, with the path as ``filename``; ``path`` is what it was.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        try:
            try:
                write(beside)
            except RuntimeError as error:  # torch's word for a full disk
                raise _reason(beside, error) from error
        except OSError as error:
            error.filename = str(path)
            raise
        with beside.open("rb") as stream:
            os.fsync(stream.fileno())
        beside.chmod(0o666 & ~_umask())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def _reason(path: Path, error: RuntimeError) -> OSError:
    """For what the system does not let a library write the file: writing on fails for the same reason."""
    try:
        with path.open("ab", buffering=0) as stream:
            for _ in range(2):  # the first may write a part
                stream.write(bytes(1 << 20))
    except OSError as reason:
        return reason
    return OSError(errno.EIO, f"cannot be written ({str(error).splitlines()[0]})")


def write_text(path: Path, text: str) -> None:
    write_then_rename(path, lambda beside: beside.write_text(text, encoding="utf-8"))


def write_json(path: Path, content: Any) -> None:
    write_text(path, to_json(content, indent=2) + "\n")


def to_json(content: Any, **options: Any) -> str:
    """Strict JSON, which every reader takes: a number that is not finite becomes null."""

    def strict(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: strict(item) for name, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [strict(item) for item in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(strict(content), allow_nan=False, **options)


def check_writable(folder: Path, option: str = "--output") -> None:
    """Refuses an output folder that could not be written, before any work."""
    try:
        existing = folder
        while not existing.exists():
            existing = existing.parent
        longest = os.pathconf(existing if existing.is_dir() else existing.parent, "PC_NAME_MAX")
    except OSError as error:
        raise ConfigError(f"{option} {folder}: {error.strerror}") from error
    if not existing.is_dir():
        raise ConfigError(f"{option} {folder}: {existing} is a file")
    for name in folder.parts:
        if len(os.fsencode(name)) > longest:
            raise ConfigError(f"{option} {folder}: a name of {len(os.fsencode(name))} bytes, {longest} are allowed")
    try:  # permissions alone do not tell: the disk may be mounted read-only, or another machine's
        os.rmdir(tempfile.mkdtemp(prefix=".elsa.", dir=existing))
    except OSError as error:
        raise ConfigError(f"{option} {folder}: {existing} is not writable ({error.strerror})") from error


def make_folder(folder: Path, option: str = "--output") -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{option} {folder} cannot be made: {error.strerror}") from error


def sweep(folder: Path) -> list[str]:
    """Removes what killed processes left of what they were writing in ``folder`` under names for a while; the names."""
    left = sorted(folder.glob(".*.tmp"))
    for path in left:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        path.unlink(missing_ok=True)
    return [path.name for path in left]


def sha256(path: str | Path) -> str:
    digest = hashlib.sha256()
    with Path(path).open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


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
            raise FileExistsError(f"{root} holds something else")
        beside = Path(tempfile.mkdtemp(dir=root.parent, prefix=f".{root.name}."))
        former = beside.with_name(f"{beside.name}.former")
        try:
            fill(beside)
            beside.chmod(0o777 & ~_umask())
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
            lock_folder(descriptor)
        yield
    finally:
        os.close(descriptor)


def _umask() -> int:
    """The process's file mode mask: it can only be read by setting it."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
