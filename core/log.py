"""One logger for all packages: lines for people on stderr, and in a run's folder."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from tqdm import tqdm

logger = logging.getLogger("elsa")


def setup_logging(rank: int = 0, file: Path | None = None) -> None:
    """Console and file for the main process; the others only warn, with their rank."""
    logger.handlers.clear()
    logger.propagate = False
    logger.setLevel(logging.INFO if rank == 0 else logging.WARNING)
    prefix = "" if rank == 0 else f"[rank {rank}] "
    handlers: list[logging.Handler] = [_ConsoleHandler()]
    if file is not None and rank == 0:
        handlers.append(_LogFile(file, encoding="utf-8"))
    for handler in handlers:
        with_date = isinstance(handler, logging.FileHandler)
        form = "%(asctime)s %(message)s" if with_date else f"{prefix}%(message)s"
        handler.setFormatter(logging.Formatter(form, "%Y-%m-%d %H:%M:%S"))
        logger.addHandler(handler)


@contextmanager
def without_warnings() -> Iterator[None]:
    """In here nobody is told of Python's warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def silence(stream: TextIO) -> None:
    """What is written to stdout or stderr from now on goes nowhere: its reader has left."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


class _ConsoleHandler(logging.Handler):
    """Writes lines to stderr without tearing a progress bar; a run goes on where nobody reads them any more."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            tqdm.write(self.format(record), file=sys.stderr)
        except OSError:
            silence(sys.stderr)


class _LogFile(logging.FileHandler):
    """A line that the disk does not take is not worth a run: what must be kept, checkpoints, tells of a full disk."""

    def handleError(self, record: logging.LogRecord) -> None:
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)
