"""Runs that are killed at random moments end as if nothing had happened; tests/soak.py does it for hours."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

from guarantees import assert_same_run, left_over, records, same, saved

# One process; two that divide a model; one with loader processes; two with whole models.
HOWS = {"alone": 1, "fsdp": 2, "loaders": 1, "ddp": 2}
PARALLEL = {"classification": "TRAIN.PARALLEL", "detection": "run.parallel", "segmentation": "run.parallel"}
EVERY = {"classification": "LOG.EVERY", "detection": "run.log_every", "segmentation": "run.log_every"}
SAVE = 2


def test_random_kills_change_nothing(task, launch, tmp_path, request, capsys):
    """Whatever process is killed, whenever: the others end by themselves, the same command goes on from a checkpoint
    that is at most two saves old, and the end is that of an undisturbed run."""
    for how in HOWS:
        kills = share(request.config.getoption("kills"), f"{task.task} {how}")
        chance = random.Random(f"{request.config.getoption('soak_seed')} {task.task} {how}")
        told = soak(task, how, kills, chance, launch, tmp_path / how)
        with capsys.disabled():
            print(f"\n{task.task} {how}: {told['kills']} kills, {told['launches']} launches, {told['lost']} steps "
                  f"lost, {told['ends']} ends, all the same", end="", flush=True)  # fmt: skip


def soak(task, how: str, kills: int, chance: random.Random, launch, folder: Path) -> Counter:
    """Runs of a kind until ``kills`` of their processes were killed and the last one has ended; what happened."""
    settings = [*task.set(save=SAVE, workers=2 if how == "loaders" else 0), f"{EVERY[task.task]}=1"]
    if HOWS[how] > 1:
        more = ["global_batch=4"] if task.task == "segmentation" else []  # batch norm of a 1×1 map needs two images
        limit = PARALLEL[task.task].replace("PARALLEL", "TIMEOUT").replace("parallel", "timeout")
        # Of one that is killed before it has joined the others only a launcher would know: they wait for twice as long.
        settings += [f"{PARALLEL[task.task]}={how}", f"{limit}=0.5", *more]
    whole, run, told, seconds = folder / "whole", folder / "run", Counter(), 0.0
    while told["kills"] < kills or run.exists():
        output = run if whole.exists() else whole
        done, began = steps(output), time.monotonic()
        one = launch("none", "train", task.recipe, "--output", output, "--resume", "auto", *settings,
                     processes=HOWS[how])  # fmt: skip
        if output == run and told["kills"] < kills:
            told["kills"] += kill_one(one, chance, began + chance.uniform(0.2, seconds))
        codes = one.wait(240)
        assert None not in codes, f"waits for a process that is gone: {codes}\n{one.said()}"
        assert 2 not in codes and "Traceback" not in one.said(), one.said()
        if output == whole:
            assert set(codes) == {0}, one.said()
            seconds = time.monotonic() - began
            continue
        told["launches"] += 1
        if resumed := re.search(r"resumed after step (\d+)", one.said()):
            lost = done - int(resumed[1])
            assert lost <= 2 * SAVE, f"{lost} steps were lost"
            told["lost"] += lost
        if set(codes) == {0}:
            assert_same_end(whole, run, how)
            told["ends"] += 1
            shutil.rmtree(run)
    return told


def kill_one(one, chance: random.Random, moment: float) -> bool:
    """Kills one of the processes, loader processes included, at a moment unless they have ended before."""
    while time.monotonic() < moment and any(part.is_alive() for part in one.processes):
        time.sleep(0.01)
    alive = [pid for part in one.processes if part.is_alive() for pid in family(part.pid)]
    with suppress(ProcessLookupError):
        if alive:
            os.kill(chance.choice(alive), signal.SIGKILL)
            return True
    return False


def share(kills: int, name: str) -> int:
    """Of all kills those of one kind of run; the first three are of three tasks in three ways."""
    hows = list(HOWS)
    kinds = [f"{task} {hows[(at + turn) % len(hows)]}" for turn in range(len(hows)) for at, task in enumerate(PARALLEL)]
    return len(range(kinds.index(name), kills, len(kinds)))


def steps(run: Path) -> int:
    return max((record["step"] for record in records(run, "train")), default=0) if (run / "log.jsonl").exists() else 0


def family(pid: int) -> list[int]:
    """A process and its children, loader processes among them."""
    with suppress(OSError):
        return [pid, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]
    return [pid]


def assert_same_end(whole: Path, run: Path, how: str) -> None:
    if how != "fsdp":
        assert_same_run(whole, run)
        return
    for name in ("last", "best"):
        assert same(saved(whole, name), saved(run, name)), name
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (whole, run)]
    assert summaries[0]["best"] == summaries[1]["best"] and summaries[0]["last"] == summaries[1]["last"]
    assert left_over(run) == left_over(run / "shards") == []
