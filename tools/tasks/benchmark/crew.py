"""The contestants' processes, and whose turn it is: one computes while the others wait."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from elsa.core import ConfigError, TrainingError

from .rivals import Rival, environment_of

TURN = 0.1  # seconds that a turn lasts at least, so that what is quick is called several times
PATIENCE = 5.0  # seconds for a process to end by itself


@dataclass(frozen=True)
class Case:
    """What all contestants do, but for the number of threads."""

    task: str
    size: tuple[int, int]
    batch: int
    which: str  # "inference" or "train"
    mode: str
    dtype: str
    device: str
    drop_path: float | None = None


@dataclass
class Turns:
    """What was measured of a contestant: per round the seconds of each call, on the wall and on the processors."""

    wall: list[list[float]]
    cpu: list[list[float]]


class Worker:
    """One process of a contestant."""

    def __init__(self, rival: Rival, environment: dict[str, str], errors: Path) -> None:
        self.rival, self.errors = rival, errors
        command = [sys.executable, "-m", "elsa.tools.tasks.benchmark.worker"]
        pipe = subprocess.PIPE
        with errors.open("w") as stream:
            # Not in the terminal's group: Ctrl-C is for the one who asks.
            self.process = subprocess.Popen(
                command, stdin=pipe, stdout=pipe, stderr=stream, text=True, env=environment, start_new_session=True
            )

    def tell(self, **message: Any) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # ``answer`` says why
            self.process.stdin.write(json.dumps(message) + "\n")
            self.process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        """Waits for it.

        Raises:
            ConfigError: the network cannot do this. TrainingError: it failed, or its process is gone.
        """
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            code = self.process.wait()
            if code < 0:
                name = signal.Signals(-code).name
                cure = ": too little memory? Try a smaller --batch" if name == "SIGKILL" else ""
                raise TrainingError(f"{self.rival.label}: its process was ended by {name}{cure}")
            last = self.errors.read_text().strip().rpartition("\n")[2]
            raise TrainingError(f"{self.rival.label}: its process ended with code {code}: {last}")
        found = json.loads(line)
        if "error" in found:
            kind = ConfigError if found["user"] else TrainingError
            told = found["error"]
            raise kind(told if told.startswith(self.rival.model) else f"{self.rival.label}: {told}")
        return found

    def close(self, at_once: bool) -> None:
        """Ends the process; ``at_once`` does not wait for what it computes."""
        assert self.process.stdin is not None and self.process.stdout is not None
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        try:
            self.process.wait(0 if at_once else PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()


class Crew:
    """All contestants with their processes.

    Args:
        cores: of this machine, that may be used. threads: the most of them that one process will use; 0: a GPU's.
        any_threads: whether compiled code must do with any number of threads.
    """

    def __init__(self, rivals: Sequence[Rival], cores: Sequence[int], threads: int, any_threads: bool = False) -> None:
        self.rivals, self.cores = list(rivals), list(cores)
        self.folder = tempfile.TemporaryDirectory(prefix="elsa.")
        self.teams: list[list[Worker]] = []
        for rival in rivals:
            environment = environment_of(rival, threads, any_threads)
            self.teams.append([])
            for _ in range(rival.processes):
                errors = self._file(f"errors {len(self.teams)} {len(self.teams[-1])}")
                self.teams[-1].append(Worker(rival, environment, errors))
        self.seconds: list[float] = []

    def _file(self, name: str) -> Path:
        return Path(self.folder.name) / name

    def prepare(self, case: Case, threads: int) -> list[dict[str, Any]]:
        """All networks are built and called twice, one after the other, so that memory need not hold the activations of
        all at once; what the first process of each says of it."""
        of_model: dict[str, dict[str, Any]] = {}
        answers = []
        for number, team in enumerate(self.teams):
            rival = team[0].rival
            about = {**asdict(case), "pass": case.which, "model": rival.model, "ours": rival.ours,
                     "our_linear": rival.our_linear, "threads": threads, "count": rival.model not in of_model,
                     "world": rival.processes, "store": str(self._file(f"store {number}"))}  # fmt: skip
            for rank, worker in enumerate(team):
                worker.tell(do="prepare", rank=rank, cores=self._share(rank, threads), **about)
            answer, *_ = [worker.answer() for worker in team]
            counted = of_model.setdefault(rival.model, answer)
            answers.append({**answer, "flops": counted["flops"], "parameters": counted["parameters"]})
        self.seconds = [answer["seconds"] for answer in answers]
        return answers

    def race(self, rounds: int, threads: Sequence[int], advance: Callable[[], None]) -> list[list[Turns]]:
        """Every contestant has a turn with each number of threads in each round, in an order that goes round.

        Args:
            advance: called after each turn.

        Returns:
            Per contestant and number of threads; of several processes those of the slowest.
        """
        found = [[Turns([], []) for _ in threads] for _ in self.teams]
        places = [(team, which) for team in range(len(self.teams)) for which in range(len(threads))]
        for number in range(rounds):
            shift = number % len(places)
            for team, which in places[shift:] + places[:shift]:
                turn = self._turn(team, threads[which])
                found[team][which].wall.append(turn["wall"])
                found[team][which].cpu.append(turn["cpu"])
                advance()
        return found

    def profile(self, threads: int) -> list[dict[str, Any]]:
        """The parts of one call of the first contestant: stage, part, seconds."""
        worker = self.teams[0][0]
        worker.tell(do="profile", threads=threads, cores=self._share(0, threads))
        return worker.answer()["parts"]

    def _turn(self, team: int, threads: int) -> dict[str, list[float]]:
        calls = max(1, round(TURN / self.seconds[team]))
        for rank, worker in enumerate(self.teams[team]):
            worker.tell(do="turn", calls=calls, threads=threads, cores=self._share(rank, threads))
        answers = [worker.answer() for worker in self.teams[team]]
        return max(answers, key=lambda answer: sum(answer["wall"]))

    def _share(self, rank: int, threads: int) -> list[int]:
        """The processor cores of one process, as many as it has threads, from the last one on; of a GPU's all."""
        backwards = self.cores[::-1]
        return [backwards[(rank * threads + index) % len(backwards)] for index in range(threads if threads else 0)]

    def close(self, at_once: bool) -> None:
        for team in self.teams:
            for worker in team:
                worker.close(at_once)
        self.folder.cleanup()


@contextlib.contextmanager
def crew(*args: Any, **options: Any) -> Iterator[Crew]:
    """A crew whose processes are gone at the end, however it ends."""
    one = Crew(*args, **options)
    try:
        yield one
    except BaseException:
        one.close(at_once=True)
        raise
    one.close(at_once=False)
