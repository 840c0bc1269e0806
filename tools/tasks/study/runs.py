"""The runs of a study: each a training of its own, some at a time; what is finished stays, the rest goes on."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from elsa.core import ConfigError, Progress, logger, make_folder

from ..command import read
from ..runs import Run, read_run
from .plan import Study, Variant

GRACE = 120.0  # seconds in which a training that is asked to stop saves


@dataclass
class Planned:
    """A run to be: of one variant and seed."""

    variant: Variant
    seed: int
    folder: Path
    settings: list[str]
    found: Run = field(init=False)

    def __post_init__(self) -> None:
        self.look()

    @property
    def name(self) -> str:
        return f"{self.variant.name}, seed {self.seed}"

    def look(self) -> None:
        self.found = read_run(self.folder) if self.folder.is_dir() else Run(self.folder)


def plan_runs(study: Study, output: Path) -> list[Planned]:
    """All runs, seed by seed, so that an unfinished study has something of each variant.

    Raises:
        ConfigError: a finished run is of another recipe than the study has now.
    """
    runs = []
    for seed in study.seeds:
        for variant in study.variants:
            folder = output / "runs" / variant.name / f"seed-{seed}"
            run = Planned(variant, seed, folder, study.settings(variant, seed))
            if run.found.finished and not _is_of(study, run):
                raise ConfigError(
                    f"{folder} was trained by another recipe than {study.name} has now: choose another --output, or "
                    "remove that folder"
                )
            runs.append(run)
    return runs


def _is_of(study: Study, run: Planned) -> bool:
    """Whether a run's folder holds the recipe that the study has now."""
    _, recipe = read(study.recipe, run.settings)
    saved = run.folder / recipe.file
    return saved.is_file() and saved.read_text(encoding="utf-8") == recipe.text


def command(study: Study, run: Planned, device: str) -> list[str]:
    """The arguments of train."""
    own = ["--set", *run.settings, "--output", str(run.folder), "--resume", "auto", "--device", device]
    return [str(study.recipe), *own]


def shell_lines(study: Study, runs: Sequence[Planned]) -> Iterator[str]:
    """What is left to run, for other launchers."""
    for run in runs:
        if not run.found.finished:
            yield shlex.join(["elsa", "train", *command(study, run, "auto")])


def run_all(study: Study, runs: Sequence[Planned], devices: Sequence[str], jobs: int, processes: int) -> list[str]:
    """Trains what is not finished; returns what failed, a line each.

    Args:
        devices: of the runs; each has its own where there are several.
        jobs: runs at a time, on each device.
        processes: of each run.
    """
    waiting = [run for run in runs if not run.found.finished]
    if done := len(runs) - len(waiting):
        logger.info("%d of %d runs are there already", done, len(runs))
    free = [device for _ in range(jobs) for device in devices]
    threads = max(1, (os.cpu_count() or 1) // (len(free) * processes))
    active: dict[subprocess.Popen, tuple[Planned, str, IO[bytes]]] = {}
    failed: list[str] = []
    progress = Progress(len(waiting), "training", "runs", shown=True)
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # as an interrupt: nothing stays
    try:
        while waiting or active:
            while waiting and free:
                run, device = waiting.pop(0), free.pop(0)
                log = _log(run)
                active[_start(study, run, device, processes, threads, log)] = run, device, log
            for process in [process for process in active if process.poll() is not None]:
                run, device, log = active.pop(process)
                log.close()
                free.append(device)
                run.look()
                progress.advance()
                if process.returncode or not run.found.finished:
                    failed.append(f"{run.name}: {_last_words(Path(log.name))}")
                    logger.error("%s failed: %s", run.name, failed[-1].partition(": ")[2])
                else:
                    logger.info("%s: done", run.name)
            time.sleep(0.2)
    finally:
        _stop(list(active))
        for _, _, log in active.values():
            log.close()
        progress.close()
        signal.signal(signal.SIGTERM, before)
    return failed


def _log(run: Planned) -> IO[bytes]:
    make_folder(run.folder.parent)
    return (run.folder.parent / f"{run.folder.name}.log").open("wb")


def _start(study: Study, run: Planned, device: str, processes: int, threads: int, log: IO[bytes]) -> subprocess.Popen:
    several = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"] if processes > 1 else []
    settled = {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE", "THP_MEM_ALLOC_ENABLE": "1"}
    return subprocess.Popen(
        [sys.executable, *several, "-m", "elsa.tools", "train", *command(study, run, device)],
        stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={**settled, **os.environ}, start_new_session=True,
    )  # fmt: skip


def _stop(processes: Sequence[subprocess.Popen]) -> None:
    """Has trainings save and end."""
    for process in processes:
        with suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
    until = time.monotonic() + GRACE
    for process in processes:
        try:
            process.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def _last_words(log: Path) -> str:
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    told = [line for line in lines if line.startswith("error:")] or lines or ["it said nothing"]
    return f"{told[-1].removeprefix('error: ').strip()} (all in {log})"
