"""A profile of some steps of a launch: a trace, the operators that took most, and on a GPU who holds the memory."""

from __future__ import annotations

import gzip
import re
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from elsa.core import ConfigError, logger, make_folder, write_text, write_then_rename

FOLDER, DEFAULT = "profile", "10:15"
ROWS = 40
MOST_STEPS = 1000  # a trace of more would fill memory and disk


class Profile:
    """Profiles the steps ``first`` to ``last`` of this launch, from 1, and leaves the rest alone.

    Args:
        folder: the run's.
        rank: of this process, for the names of files.
    """

    def __init__(self, folder: Path, first: int, last: int, rank: int, device: torch.device) -> None:
        self.folder, self.first, self.last, self.device = folder / FOLDER, first, last, device
        self.name = f"steps{first}-{last}.rank{rank}"
        self.step, self.running = 0, False
        self.profiler: profile | None = None

    def begin(self) -> None:
        """Before the data of a step are asked for."""
        self.step += 1
        if self.step != max(self.first - 1, 1):  # the step before warms up
            return
        activities = [ProfilerActivity.CPU]
        if self.device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
            torch.cuda.memory._record_memory_history(max_entries=200_000)
        when = schedule(wait=0, warmup=int(self.first > 1), active=self.last - self.first + 1, repeat=1)
        self.profiler = profile(
            activities=activities, schedule=when, record_shapes=True, profile_memory=True, acc_events=True,
            on_trace_ready=self.write,
        )  # fmt: skip
        self.profiler.start()

    def end(self) -> None:
        """After a step."""
        if self.profiler is not None:
            self.profiler.step()
            if self.step >= self.last:
                self.close()

    def close(self) -> None:
        """Ends what is under way, written as far as it came."""
        if self.profiler is not None:
            profiler, self.profiler = self.profiler, None
            profiler.stop()
            if self.device.type == "cuda":
                torch.cuda.memory._record_memory_history(enabled=None)
        elif self.step < self.first:
            logger.warning("--profile: this launch ended before step %d", self.first)

    def write(self, profiler: profile) -> None:
        """Writes the files; where that cannot be done, training goes on without them."""
        try:
            names = self._write(profiler)
        except (OSError, ConfigError) as error:
            logger.warning("the profile cannot be written: %s", error)
        else:
            last = min(self.step, self.last)
            logger.info("profile of steps %d to %d in %s: %s", self.first, last, self.folder, names)

    def _write(self, profiler: profile) -> str:
        make_folder(self.folder)
        write_then_rename(self.folder / f"{self.name}.pt.trace.json.gz", lambda beside: _write_trace(profiler, beside))
        by = "self_cuda_time_total" if self.device.type == "cuda" else "self_cpu_time_total"
        table = profiler.key_averages().table(sort_by=by, row_limit=ROWS, max_name_column_width=60)
        write_text(self.folder / f"{self.name}.operators.txt", table)
        if self.device.type != "cuda":
            return "trace and operators"
        memory = self.folder / f"{self.name}.memory.pickle"
        write_then_rename(memory, lambda beside: torch.cuda.memory._dump_snapshot(str(beside)))
        return "trace, operators and memory"


def _write_trace(profiler: profile, path: Path) -> None:
    profiler.export_chrome_trace(str(path))
    path.write_bytes(gzip.compress(path.read_bytes(), compresslevel=6))


def parse_steps(text: str, done: int, total: int, evaluate_every: int) -> tuple[int, int, bool]:
    """FIRST:LAST or FIRST:LAST:all → first step, last step, whether of every process.

    Args:
        done: steps of earlier launches; total: of the whole run; evaluate_every: steps between evaluations.

    Raises:
        ConfigError: something else, or steps that this launch has not or that an evaluation interrupts.
    """
    found = re.fullmatch(r"(\d{1,9}):(\d{1,9})(:all)?", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise ConfigError(f"--profile must be FIRST:LAST, steps of this launch such as {DEFAULT}, got {text!r:.80}")
    first, last = int(found[1]), int(found[2])
    if last - first >= MOST_STEPS:
        raise ConfigError(f"--profile {text}: {last - first + 1} steps are too many for a trace; a few show it all")
    if last > total - done:
        raise ConfigError(f"--profile {text}: this launch has {total - done} steps")
    evaluation = first + -(done + first) % evaluate_every  # the first step at or after which one comes
    if evaluation < last:
        raise ConfigError(
            f"--profile {text}: an evaluation comes after step {evaluation} of this launch; choose steps before or "
            "after it"
        )
    return first, last, bool(found[3])
