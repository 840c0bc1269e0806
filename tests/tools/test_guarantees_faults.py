"""A guarantee is a test over all tasks: what a machine does to a run, but for killing it (docs/faults.md)."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress

import pytest
import torch
from guarantees import assert_same_run, content, left_over

from elsa.engine import Trainer

MINUTES = {"classification": "TRAIN.TIMEOUT", "detection": "run.timeout", "segmentation": "run.timeout"}


def two_images(task) -> list[str]:
    """Batch norm of a 1×1 map needs two images in each process."""
    return ["global_batch=4"] if task.task == "segmentation" else []


@pytest.fixture
def at_step(monkeypatch):
    """``at_step(number, fault)``: called after that step of a training in this process."""
    count, wanted = Trainer.count, {}

    def counted(self, record):
        count(self, record)
        if fault := wanted.pop(self.state.step, None):
            fault()

    monkeypatch.setattr(Trainer, "count", counted)

    def call(number, fault):
        wanted[number] = fault

    return call


def test_a_silent_process_is_named_and_ends_the_run(task, launch, tmp_path):
    """Within TRAIN.TIMEOUT and a little, instead of half an hour; what was saved before stays."""
    assert_blamed(task, launch, tmp_path, "freeze", "been silent for 0.05 minutes: stopped, or its machine is gone")


@pytest.mark.parametrize("task", ["classification"], indirect=True)
def test_a_process_that_hangs_is_named_with_what_it_does(task, launch, tmp_path):
    assert_blamed(task, launch, tmp_path, "hang", "not gone on for 0.05 minutes: computing step 3")


def assert_blamed(task, launch, tmp_path, fault: str, said: str) -> None:
    run = tmp_path / "run"
    limits = [*task.set(save=2), f"{MINUTES[task.task]}=0.05", *two_images(task)]
    both = launch(f"{fault}:3@1", "train", task.recipe, "--output", run, *limits, processes=2)
    both.processes[0].join(90)
    assert both.processes[0].exitcode == 1, both.said()
    told = f"error: process 1 of 2 has {said}; the last good checkpoint is {run / 'last.pt'}"
    assert both.said().splitlines()[-1] == told
    both.kill()
    assert content(run / "last.pt")["step"] == 2


def test_the_main_process_is_looked_after_as_well(config, launch, tmp_path):
    """It holds the store in which the others leave their signs."""
    run = tmp_path / "run"
    limits = ["--set", "LOG.SAVE_STEPS=2", "TRAIN.TIMEOUT=0.05"]
    both = launch("freeze:3@0", "train", config, "--output", run, *limits, processes=2)
    both.processes[1].join(90)
    assert both.processes[1].exitcode == 1, both.said(1)
    assert "error: the store of the processes, which process 0 or the launcher holds, has not answered for 0.05" in (
        both.said(1)
    )
    assert f"the last good checkpoint is {run / 'last.pt'}" in both.said(1)


def test_processes_whose_launcher_is_killed_save_and_end(config, root, tmp_path, tool):
    """As if they had been asked to stop: the same command goes on."""
    run, recipe = tmp_path / "run", ["--set", "TRAIN.EPOCHS=300", "TRAIN.TIMEOUT=0.1", "LOG.EVERY=1"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*torchrun, str(root / "tools/train.py"), str(config), "--output", str(run), *recipe]
    with (tmp_path / "said").open("w") as said:
        launcher = subprocess.Popen(command, stdout=said, stderr=said, start_new_session=True)
    try:
        wait_until(lambda: (run / "log.jsonl").exists() and (run / "log.jsonl").read_text().count("\n") > 3)
        launcher.kill()
        launcher.wait()
        wait_until(lambda: "and saved; go on with --resume auto" in (tmp_path / "said").read_text())
    finally:
        with suppress(ProcessLookupError):
            os.killpg(launcher.pid, signal.SIGKILL)
    step = content(run / "last.pt")["step"]
    assert f"stopped after step {step} and saved" in (tmp_path / "said").read_text()
    assert "the launcher is gone" in (tmp_path / "said").read_text()


def wait_until(reached) -> None:
    end = time.monotonic() + 90
    while not reached():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.1)


def test_a_full_disk_keeps_the_checkpoint_before(task, whole, tool, tmp_path, monkeypatch):
    """The third save finds no room: the run ends, says so, and goes on to the same end where there is room again."""
    run, save, saves = tmp_path / "run", torch.save, []

    def full(content, path):
        saves.append(path)
        if len(saves) >= 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save(content, path)

    arguments = ("train", task.recipe, "--output", run, "--resume", "auto", *task.set(save=1))
    with monkeypatch.context() as small:
        small.setattr(torch, "save", full)
        outcome = tool(*arguments)
    assert outcome.code == 1
    last = outcome.err.splitlines()[-1]
    assert last.startswith("error: No space left on device") and "the last good checkpoint is" in last
    assert "Traceback" not in outcome.err
    assert content(run / "last.pt")["step"] == 2
    assert left_over(run) == []
    assert tool(*arguments).code == 0
    assert_same_run(whole, run)


def test_a_run_whose_folder_is_removed_ends(task, tool, tmp_path, at_step):
    at_step(3, lambda: shutil.rmtree(tmp_path / "run"))
    outcome = tool("train", task.recipe, "--output", tmp_path / "run", *task.set(save=4))
    assert outcome.code == 1
    last = outcome.err.splitlines()[-1]
    assert last.startswith("error: No such file or directory") and str(tmp_path / "run") in last
    assert last.endswith("no checkpoint was written yet")
    assert "Traceback" not in outcome.err


def test_data_that_vanish_end_a_run_as_unreadable_images_do(task, whole, tool, tmp_path, at_step):
    """A disk that is unmounted in the middle: named, with what was saved; when it is back the run goes on."""
    data = shutil.copytree(task.data, tmp_path / "data")
    arguments = ("train", task.recipe, "--output", tmp_path / "run", "--resume", "auto", *task.set(data=data, save=2))
    at_step(3, lambda: data.rename(tmp_path / "away"))
    outcome = tool(*arguments)
    assert outcome.code == 1, outcome.err
    last = outcome.err.splitlines()[-1]
    assert "cannot be read" in last and "the last good checkpoint is" in last
    assert "Traceback" not in outcome.err
    (tmp_path / "away").rename(data)
    assert tool(*arguments).code == 0
    assert_same_run(whole, tmp_path / "run")


def test_a_clock_that_goes_backwards_changes_nothing(task, whole, tool, tmp_path, monkeypatch):
    now = [time.time()]

    def backwards():
        now[0] -= 3600.0
        return now[0]

    monkeypatch.setattr(time, "time", backwards)
    outcome = tool("train", task.recipe, "--output", tmp_path / "run", *task.set(save=2))
    assert outcome.code == 0, outcome.err
    monkeypatch.undo()
    assert_same_run(whole, tmp_path / "run")
    assert "ETA -" not in outcome.err
