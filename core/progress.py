"""How far a long job is, and how long it will take."""

from __future__ import annotations

import time

from tqdm import tqdm

from .log import logger

LOG_SECONDS = 15.0


class Progress:
    """A bar on a terminal, else a line with the time that is left every ``LOG_SECONDS``.

    Args:
        shown: whether this process tells anything; tells_end: whether the end is told too.
    """

    def __init__(self, total: int, doing: str, unit: str, shown: bool, tells_end: bool = False) -> None:
        self.tells_end = tells_end
        self.total, self.doing, self.unit, self.shown, self.done = total, doing, unit, shown, 0
        self.start = self.told = time.perf_counter()
        self.bar = tqdm(total=total, desc=doing, unit=unit, disable=None if shown else True, leave=False)

    def advance(self, count: int = 1) -> None:
        self.done += count
        self.bar.update(count)
        now = time.perf_counter()
        ends = self.done == self.total and self.tells_end
        if self.shown and self.bar.disable and (ends or now - self.told > LOG_SECONDS):
            self.told = now
            left = (now - self.start) / self.done * (self.total - self.done)
            rate = self.done / (now - self.start)
            form = "%s: %d of %d, %.3g %s/s, ETA %s"
            logger.info(form, self.doing, self.done, self.total, rate, self.unit, tqdm.format_interval(left))

    def close(self) -> None:
        self.bar.close()
