"""torchrun as the launchers start it: python -m elsa.tools.tasks.agent [torchrun's options] SCRIPT [its arguments].

Its agent does three things otherwise. A signal is passed on to the processes and the agent stays until they end, so
that the agents of other nodes, whose processes stop with them, end too. What is a user's mistake (exit code 2) is not
started again, nor what was asked to stop. And the end is told in lines and by an exit code: 0 where all processes ended
well, 2 for a mistake, else 1.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import signal
import sys
import threading
import time
from argparse import Namespace
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any, ClassVar, TextIO

from torch.distributed import run
from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerState
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous import RendezvousConnectionError, RendezvousError
from torch.distributed.elastic.rendezvous.utils import _matches_machine_hostname
from torch.distributed.launcher import api

from elsa.core import ConfigError, TrainingError, check_writable, silence

from .rendezvous import meet

MISTAKE = 2  # exit code of a user's mistake
REQUESTS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
SIGN = re.compile(r"(?:\[rank \d+\] )?")
EARLY = "stopped before the training had begun"
GRACE = 3.0  # seconds within which a repeated signal is the same request, as for engine.StopRequest


class Agent(LocalElasticAgent):
    """torchrun's agent of this node, with the differences that the module's text tells."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.asked = 0.0
        self.starting, self.early = False, 0  # a signal that came while processes were started, which hear it then
        for number in REQUESTS:
            if signal.getsignal(number) is not signal.SIG_IGN:  # as SIGHUP is under nohup
                signal.signal(number, self._pass_on)
        signal.signal(signal.SIGALRM, self._give_up)

    def _pass_on(self, number: int, _frame: FrameType | None) -> None:
        """Once; again, from somebody who will not wait, or before there are processes: torchrun's own way to end."""
        if self.starting:
            self.early = self.early or number
            return
        again = self.asked and time.monotonic() - self.asked > GRACE
        if again or self._pcontext is None or self._worker_group.state is not WorkerState.HEALTHY:
            raise SignalException("again" if again else EARLY, sigval=signal.Signals(number))
        if not self.asked:
            self.asked = time.monotonic()
            for pid in self._pcontext.pids().values():
                with suppress(ProcessLookupError):
                    os.kill(pid, number)
            signal.alarm(self._shutdown_timeout)

    def _give_up(self, _number: int, _frame: FrameType | None) -> None:
        tell(f"error: not ended within SHUTDOWN_TIMEOUT={self._shutdown_timeout} seconds, and killed")
        raise SignalException("too late", sigval=signal.SIGKILL)

    def _initialize_workers(self, worker_group: WorkerGroup) -> None:
        """Processes that are started are known: torchrun, interrupted in the middle of it, would leave them behind."""
        try:
            super()._initialize_workers(worker_group)
        finally:
            self.starting = False
        number, self.early = self.early, 0  # once: processes may start again, when another node joins
        if number:
            self._pass_on(number, None)

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        Terminal.told.clear()
        self.starting = True
        return super()._start_workers(worker_group)

    def _stop_workers(self, worker_group: WorkerGroup) -> None:
        self._shutdown(timeout=self._shutdown_timeout)  # torchrun's would not wait for a long save

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        result = super()._monitor_workers(worker_group)
        if result.state is not WorkerState.HEALTHY:
            signal.alarm(0)
        if result.failures:
            if self.asked or any(failure.exitcode == MISTAKE for failure in result.failures.values()):
                self._remaining_restarts = 0
            self._tell(result, worker_group)
        return result

    def _tell(self, result: RunResult, worker_group: WorkerGroup) -> None:
        """Which processes were killed, they could not say it themselves, and whether all start again."""
        time.sleep(0.3)  # what the processes have said comes before
        for rank, failure in sorted(result.failures.items()):
            if failure.exitcode < 0 and failure.exitcode != -signal.SIGTERM:  # that is ours, to those that are left
                world = worker_group.workers[0].world_size
                tell(f"process {rank} of {world} was killed ({signal.Signals(-failure.exitcode).name})")
        if self._remaining_restarts:
            allowed = worker_group.spec.max_restarts
            number = allowed - self._remaining_restarts + 1
            tell(f"all processes start again, from the last save where there is one ({number} of RESTARTS={allowed})")


class Terminal:
    """stdout or stderr, to which torchrun copies the lines of all processes: rank 0's as they are, the others' with
    their rank; and an error that several have is told once."""

    told: ClassVar[set[str]] = set()
    lock = threading.Lock()

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.begun: dict[str, str] = {}  # rank's sign → what it has written of a line

    def write(self, text: str) -> int:
        """A line, or a part of one, behind the sign of a rank."""
        sign = SIGN.match(text)[0]
        with self.lock:
            line = self.begun.pop(sign, "") + text[len(sign) :]
            if line.endswith("\n"):
                self._show(sign, line)
            else:
                self.begun[sign] = line
        return len(text)

    def _show(self, sign: str, line: str) -> None:
        own = SIGN.match(line)[0]  # some lines have it already
        sign, line = "" if "[rank 0] " in (sign, own) else sign or own, line[len(own) :]
        if line.startswith("error: "):
            if line in self.told:
                return
            self.told.add(line)
        try:
            self.stream.write(sign + line)
            self.stream.flush()
        except OSError:  # nobody reads it
            silence(self.stream)

    def close_lines(self) -> None:
        """Shows the last lines that had no end."""
        for sign, line in self.begun.items():
            self._show(sign, f"{line}\n")
        self.begun.clear()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def tell(line: str) -> None:
    """On stderr, in one piece."""
    sys.stderr.write(f"{line}\n")


def launch(arguments: list[str]) -> int:
    """Runs torchrun's main with ``Agent``; returns the exit code."""
    for name in [*logging.root.manager.loggerDict]:  # told here in fewer words, unless LOGLEVEL asks for torchrun's
        if name.startswith("torch.distributed.elastic"):
            logging.getLogger(name).setLevel(os.environ.get("LOGLEVEL", "CRITICAL"))
    args = run.parse_args(["--signals-to-handle=SIGQUIT", *arguments])
    api.LocalElasticAgent = Agent
    try:
        if args.log_dir:
            check_writable(Path(args.log_dir).parents[1])
        return _run(args)
    except ConfigError as error:
        tell(f"error: {error}")
        _remove(args.log_dir)
        return MISTAKE
    except ChildFailedError as error:
        codes = {failure.exitcode for failure in error.failures.values()}
        if MISTAKE in codes:
            _remove(args.log_dir)
            return MISTAKE
        if codes <= {-number for number in REQUESTS}:
            tell(EARLY)
            return 128 - min(codes)
        return 1
    except SignalException as error:
        if str(error) == EARLY:
            tell(EARLY)
        return 1 if error.sigval is signal.SIGKILL else 128 + error.sigval
    except (TrainingError, RendezvousError) as error:
        tell(f"error: {'the nodes have not met: ' * isinstance(error, RendezvousError)}{error}")
        return 1


def _run(args: Namespace) -> int:
    """torchrun, again where the first of several nodes, which has the store, is lost and may come back."""
    given = args.rdzv_conf
    for number in range(args.max_restarts + 1):
        first = args.standalone or meet(args.rdzv_endpoint, args.rdzv_id, args.nnodes)
        # torchrun is told only what it does not see itself: once told, it fails where another agent here is quicker
        if not args.standalone and not (first and _matches_machine_hostname(args.rdzv_endpoint.rpartition(":")[0])):
            args.rdzv_conf = ",".join(filter(None, [f"is_host={first}", given]))
        try:
            run.run(args)
            break
        except RendezvousConnectionError:
            if first or number == args.max_restarts:
                raise
            tell(f"the first node is lost; waiting for it ({number + 1} of RESTARTS={args.max_restarts})")
            os.environ["NODE_RESTART_COUNT"] = str(number + 1)
    return 0


def _remove(logs: str | None) -> None:
    """The logs of a start that was a mistake, and the run's folder where there is nothing else in it."""
    if logs:
        shutil.rmtree(logs, ignore_errors=True)
        for folder in Path(logs).parents[:2]:
            with suppress(OSError):
                folder.rmdir()


if __name__ == "__main__":
    sys.stdout, sys.stderr = Terminal(sys.stdout), Terminal(sys.stderr)
    code = launch(sys.argv[1:])
    for stream in (sys.stdout, sys.stderr):
        stream.close_lines()
    sys.exit(code)
