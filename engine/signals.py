"""The wish to stop: signals of people, terminals and schedulers, turned into a flag that a step looks at."""

from __future__ import annotations

import signal
import threading
import time
from typing import Any

from elsa.core import logger


class StopRequest:
    """Turns SIGINT, SIGTERM and SIGHUP into a flag; another one, of somebody who will not wait, stops at once.

    Launchers forward the signal that their workers got from the terminal or the scheduler already, so a repetition
    within ``GRACE`` seconds is the same request. A signal that was ignored before (SIGHUP under nohup, SIGINT in a
    shell's background) stays so.
    """

    GRACE = 3.0

    def __init__(self) -> None:
        self.name, self.since = "", 0.0
        self._old: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._old[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, old in self._old.items():
            signal.signal(number, old)

    def _handle(self, number: int, _frame: object) -> None:
        if self.name:
            if time.monotonic() - self.since > self.GRACE:
                raise KeyboardInterrupt
            return
        self.name, self.since = signal.Signals(number).name, time.monotonic()
        words = f"{self.name}: finishing this step and saving; once more to stop at once"
        # In a thread of its own: what the signal interrupted may be writing a line just now.
        threading.Thread(target=logger.warning, args=(words,), daemon=True).start()
