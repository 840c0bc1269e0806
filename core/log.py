"""One logger for all packages: lines for people on stderr, and in a run's folder."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

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
        handlers.append(logging.FileHandler(file, encoding="utf-8"))
    for handler in handlers:
        with_date = isinstance(handler, logging.FileHandler)
        form = "%(asctime)s %(message)s" if with_date else f"{prefix}%(message)s"
        handler.setFormatter(logging.Formatter(form, "%Y-%m-%d %H:%M:%S"))
        logger.addHandler(handler)


class _ConsoleHandler(logging.Handler):
    """Writes lines to stderr without tearing a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stderr)
