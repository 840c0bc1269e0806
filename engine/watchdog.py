"""A watchdog for processes that are there but do nothing any more: stopped, hanging, or their machine without power.

What a killed process leaves is noticed by its peers at once (``distributed``). One that is silent is not: the others
wait for it. So each process says every few seconds that it lives, and how far it is; where nothing goes on for
``minutes``, it is told which one is to blame, and the run ends, to be begun again from its last checkpoint. Where the
launcher is gone, which would do so, the processes save and end.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
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
        self.rank, self.world_size, self.minutes, self.store = rank, world_size, minutes, store.clone()
        self.every = min(5.0, minutes * 60 / 6)
        self.beats, self.begun, self.pulses, self.doing = 0, 0, 0, ""
        self.advice: Callable[[], str] = lambda: ""
        self.launcher = os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else None
        self.ended = threading.Event()
        self.looking = False
        self.seen: list[dict[int, Sign]] = []  # the signs of all, while looking
        # In a thread of its own, for the store may never answer.
        self.messenger = threading.Thread(target=self._leave_signs, name="watchdog's messenger", daemon=True)

    def note(self, doing: str) -> None:
        """The process begins something that all do in the same order."""
        self.begun, self.doing = self.begun + 1, doing

    def pulse(self) -> None:
        """The process goes on with what may take long."""
        self.pulses += 1

    def stop(self) -> None:
        self.ended.set()
        self.join()
        self.messenger.join(timeout=1.0)

    def run(self) -> None:
        self.messenger.start()
        before, since = (-1, -1), time.monotonic()
        while not self.ended.wait(self.every):
            self._look_for_launcher()
            if (now := (self.begun, self.pulses)) != before:
                before, since = now, time.monotonic()
            elif time.monotonic() - since > self.minutes * 60 and (blamed := self._blame()):
                self._end(blamed)

    def _look_for_launcher(self) -> None:
        """A training that nobody looks after, or could start again, saves and ends."""
        if self.launcher is not None and os.getppid() != self.launcher:
            self.launcher = None
            print(f"[rank {self.rank}] the launcher is gone", file=sys.stderr, flush=True)
            os.kill(os.getpid(), signal.SIGTERM)

    def _leave_signs(self) -> None:
        """Until the store is gone, or without an end where it does not answer."""
        with suppress(RuntimeError):
            while not self.ended.wait(self.every):
                self.beats += 1
                sign = {"beats": self.beats, "begun": self.begun, "pulses": self.pulses, "doing": self.doing}
                self.store.set(f"alive/{self.rank}", json.dumps(sign))
                if self.looking:
                    self.seen.append(self._signs())

    def _signs(self) -> dict[int, Sign]:
        keys = {rank: f"alive/{rank}" for rank in range(self.world_size)}
        return {rank: Sign(**json.loads(self.store.get(key))) for rank, key in keys.items() if self.store.check([key])}

    def _blame(self) -> str:
        """Who does not go on, in words; empty where that is nobody."""
        self.seen, self.looking = [], True
        self.ended.wait(min(LOOK, max(LOOK / 3, self.minutes * 60)))
        self.looking, seen, span = False, self.seen, f"for {self.minutes:.3g} minutes"
        if len(seen) < 2:
            return f"the store of the processes, which process 0 or the launcher holds, has not answered {span}"
        first, last = seen[0], seen[-1]
        silent = [rank for rank in range(self.world_size) if rank not in last or last[rank] == first.get(rank)]
        if silent:
            return f"{self._named(silent)} been silent {span}: stopped, or its machine is gone"
        if any(first[rank].pulses != sign.pulses or first[rank].begun != sign.begun for rank, sign in last.items()):
            return ""  # one is at work
        least = min(sign.begun for sign in last.values())
        if not least:
            return ""  # before the training: the main process may prepare data for long
        behind = [rank for rank, sign in last.items() if sign.begun == least]
        if len(behind) == self.world_size:
            return f"no process has gone on {span}: all are {last[0].doing}"
        return f"{self._named(behind)} not gone on {span}: {last[behind[0]].doing}"

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
