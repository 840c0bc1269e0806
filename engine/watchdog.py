"""A watchdog for processes that are there but do nothing any more: stopped, hanging, or their machine without power.

What a killed process leaves is noticed by its peers at once (``distributed``). One that is silent is not: the others
wait for it. So each process says every few seconds that it lives, and how far it is; where nothing goes on for
``minutes``, it is told which one is to blame, and the run ends, to be begun again from its last checkpoint. Where the
launcher is gone, which would do so, the processes save and end.
"""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

LOOK = 15.0  # seconds in which whoever lives leaves a sign, however busy its machine


@dataclass(frozen=True)
class Sign:
    """Of a process: how often it has said that it lives, how many things it has begun that all do in the same order,
    how often it went on within one, and what the last one is."""

    beats: int
    begun: int
    pulses: int
    doing: str


class Watchdog(threading.Thread):
    """Looks after this process and, where it does not go on, after the others.

    Args:
        store: where signs are left; a connection of its own is made.
        minutes: without a sign.

    Attributes:
        advice: what is said to the user beside the blame.
    """

    def __init__(self, rank: int, world_size: int, store: Any, minutes: float) -> None:
        super().__init__(name="watchdog", daemon=True)
        self.rank, self.world_size, self.minutes = rank, world_size, minutes
        self.every = min(5.0, minutes * 60 / 6)
        self.store = store.clone()
        self.store.set_timeout(timedelta(seconds=max(2.0, self.every)))
        self.beats, self.begun, self.pulses, self.doing = 0, 0, 0, ""
        self.advice: Callable[[], str] = lambda: ""
        self.ended = threading.Event()
        self.launcher = os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else None

    def note(self, doing: str) -> None:
        """The process begins something that all do in the same order."""
        self.begun, self.doing = self.begun + 1, doing

    def pulse(self) -> None:
        """The process goes on with what may take long."""
        self.pulses += 1

    def stop(self) -> None:
        self.ended.set()
        self.join()

    def run(self) -> None:
        before, since = (-1, -1), time.monotonic()
        while not self.ended.wait(self.every):
            self._look_for_launcher()
            answered = self._tell()
            if (now := (self.begun, self.pulses)) != before:
                before, since = now, time.monotonic()
            elif time.monotonic() - since > self.minutes * 60 and (blamed := self._blame(answered)):
                self._end(blamed)

    def _look_for_launcher(self) -> None:
        """A training that nobody looks after, or could start again, saves and ends."""
        if self.launcher is not None and os.getppid() != self.launcher:
            self.launcher = None
            print(f"[rank {self.rank}] torchrun is gone", file=sys.stderr, flush=True)
            os.kill(os.getpid(), signal.SIGTERM)

    def _tell(self) -> bool:
        """Leaves a sign; whether the store took it."""
        self.beats += 1
        sign = {"beats": self.beats, "begun": self.begun, "pulses": self.pulses, "doing": self.doing}
        try:
            self.store.set(f"alive/{self.rank}", json.dumps(sign))
            self.store.get(f"alive/{self.rank}")
        except RuntimeError:
            return False
        return True

    def _signs(self) -> dict[int, Sign]:
        found = {}
        for rank in range(self.world_size):
            key = f"alive/{rank}"
            if self.store.check([key]):
                found[rank] = Sign(**json.loads(self.store.get(key)))
        return found

    def _blame(self, answered: bool) -> str:
        """Who does not go on, in words; empty where that is nobody."""
        span = f"for {self.minutes:.3g} minutes"
        if not answered:
            return f"the store of the processes, which process 0 or its launcher holds, has not answered {span}"
        try:
            first = self._signs()
            for _ in range(math.ceil(LOOK / self.every)):
                self.ended.wait(self.every)
                self._tell()  # the others may be looking, too
            second = self._signs()
        except RuntimeError:
            return self._blame(answered=False)
        silent = [rank for rank in range(self.world_size) if rank not in second or second[rank] == first.get(rank)]
        if silent:
            return f"{self._named(silent)} been silent {span}: stopped, or its machine is gone"
        if any(first[rank].pulses != sign.pulses or first[rank].begun != sign.begun for rank, sign in second.items()):
            return ""  # one is at work
        least = min(sign.begun for sign in second.values())
        if not least:
            return ""  # before the training: the main process may prepare data for long
        behind = [rank for rank, sign in second.items() if sign.begun == least]
        if len(behind) == self.world_size:
            return f"no process has gone on {span}: all are {second[0].doing}"
        return f"{self._named(behind)} not gone on {span}: {second[behind[0]].doing}"

    def _named(self, ranks: list[int]) -> str:
        listed = ", ".join(map(str, ranks[:5])) + ", …" * (len(ranks) > 5)
        have = "processes {} of {} have" if ranks[1:] else "process {} of {} has"
        return have.format(listed, self.world_size)

    def _end(self, blamed: str) -> None:
        """Ends this process, whose main thread waits for ever."""
        advice = self.advice()
        who = "" if self.rank == 0 else f"[rank {self.rank}] "
        print(f"{who}error: {blamed}{f'; {advice}' if advice else ''}", file=sys.stderr, flush=True)
        os._exit(1)
