"""Recipes as jobs of a cluster: what is checked before, what Slurm is asked for, a job that is stopped and goes on."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import signal
import time
from contextlib import suppress
from pathlib import Path

import pytest

from elsa.tools.tasks.launching import Job, minutes

LOCAL = ("--executor", "local", "--device", "cpu")


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """A stand-in of sbatch, whose job never starts: where it keeps the batch script."""
    bin, kept = tmp_path / "bin", tmp_path / "batch.sh"
    bin.mkdir()
    for name, text in {"sbatch": f'cp "$1" {kept}; echo "Submitted batch job 4711"', "srun": "exit 1"}.items():
        (bin / name).write_text(f"#!/bin/sh\n{text}\n")
        (bin / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{bin}:{os.environ['PATH']}")
    return kept


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--set", "TRAIN.EPOHS=3"], "did you mean TRAIN.EPOCHS?"),
        (["--partiton", "a100"], "unknown argument '--partiton'; did you mean --partition?"),
        (["--overwrit"], "unknown argument '--overwrit'; did you mean --overwrite?"),
        (["--time", "two days"], "must be a time as Slurm writes it"),
        (["--device", "gpu"], "invalid choice: 'gpu'"),
        (["--gpus", "0"], "must be a number from 1 on, got '0'"),
        (["--executor", "local", "--nodes", "2"], "--executor local has one node, and --nodes is 2"),
        (["--slurm", "exclude"], "--slurm 'exclude' must be KEY=VALUE"),
    ],
)
def test_a_mistake_is_told_and_nothing_submitted(slurm, tool, config, tmp_path, arguments, said):
    outcome = tool("launch", config, "--output", tmp_path / "run", *arguments)
    assert outcome.code == 2
    assert said in outcome.err.splitlines()[-1]
    assert "Traceback" not in outcome.err
    assert not slurm.exists() and not (tmp_path / "run").exists()


def test_what_is_missing_is_named(tool, refused, config, tmp_path, monkeypatch):
    refused(tool("launch", config), "--output DIR is needed")
    monkeypatch.setenv("PATH", str(tmp_path))
    arguments = ("launch", config, "--output", tmp_path / "run")
    refused(tool(*arguments), "--executor slurm does not take the job", "srun")
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "submitit" else find(name))
    refused(tool(*arguments), "submitit is not installed: pip install")


def test_a_job_that_slurm_refuses_leaves_nothing(slurm, tool, refused, config, tmp_path):
    (tmp_path / "bin/sbatch").write_text("#!/bin/sh\necho 'sbatch: error: invalid partition: a1' >&2; exit 1\n")
    arguments = ("launch", config, "--output", tmp_path / "run", "--partition", "a1")
    refused(tool(*arguments), "--executor slurm does not take the job: sbatch: error: invalid partition: a1")
    assert not (tmp_path / "run").exists()
    kept = tmp_path / "run/logs/4710_0_log.err"
    kept.parent.mkdir(parents=True)
    kept.touch()
    assert tool(*arguments).code == 2
    assert kept.exists(), "of a job before"


def test_a_recipe_is_printed_and_nothing_submitted(slurm, tool, config, tmp_path):
    outcome = tool("launch", config, "--output", tmp_path / "run", "--print-config")
    assert (outcome.code, outcome.out) == (0, tool("train", config, "--print-config").out)
    assert not slurm.exists() and not (tmp_path / "run").exists()


def test_what_slurm_is_asked_for(slurm, tool, config, tmp_path):
    asked = ["--nodes", 2, "--gpus", 4, "--cpus", 6, "--mem", "200G", "--time", "2-00:00:00", "--partition", "a100"]
    more = [
        "--account",
        "me",
        "--qos",
        "long",
        "--slurm",
        "constraint=80gb",
        "mail-user=a@b.c",
        "--set",
        "DATA.BATCH=16",
    ]
    outcome = tool("launch", config, "--output", tmp_path / "run", *asked, *more)
    assert outcome.code == 0, outcome.err
    assert "job 4711: 2 × 4 processes" in outcome.out and "scancel 4711" in outcome.out
    lines = slurm.read_text().splitlines()
    options = dict(line.removeprefix("#SBATCH --").split("=", 1) for line in lines if line.startswith("#SBATCH --"))
    resources = "nodes=2 ntasks-per-node=4 gpus-per-node=4 cpus-per-task=6 mem=200G time=2880"
    others = "partition=a100 account=me qos=long constraint=80gb mail-user=a@b.c"
    ours = "signal=USR2@300 open-mode=append job-name=run"
    wanted = dict(pair.split("=", 1) for pair in f"{resources} {others} {ours}".split())
    assert {name: options.get(name) for name in wanted} == wanted
    (srun,) = [line for line in lines if line.startswith("srun ")]
    assert "--cpus-per-task=6" in srun.split()
    assert f"tail -F {tmp_path}/run/logs/4711_0_log.err" in outcome.out


@pytest.mark.parametrize(
    ("text", "whole"),
    [("90", 90), ("5:30", 6), ("12:00:00", 720), ("1:00:01", 61), ("2-0", 2880), ("1-12:30", 2190), ("1-0:0:1", 1441)],
)
def test_times_are_slurms(text, whole):
    assert minutes(text) == whole


@pytest.mark.parametrize("text", ["", "0", "00:00:00", "1h", "1-", "-1", "1:2:3:4", "1.5"])
def test_times_that_are_none(text):
    with pytest.raises(argparse.ArgumentTypeError):
        minutes(text)


@pytest.mark.parametrize("own", [[], ["--overwrite"], ["--resume", "old"], ["--resume=old"], ["--resume", "auto"]])
def test_a_requeued_job_goes_on_whatever_began_it(own):
    job = Job(["c.yaml", *own, "--output", "x", "--set", "A=1"])
    again = job.checkpoint().function
    assert again.arguments == ["c.yaml", "--output", "x", "--set", "A=1", "--resume", "auto"]


def test_in_this_process(tool, config, tmp_path):
    run = tmp_path / "run"
    outcome = tool("launch", config, "--output", run, "--executor", "debug", "--gpus", 1, "--set", "TRAIN.EPOCHS=2")
    assert outcome.code == 0, outcome.err
    assert json.loads((run / "summary.json").read_text())["iterations"] == 12


def test_a_job_that_is_told_to_save_is_requeued_and_goes_on(tool, config, tmp_path):
    """Two processes; the signal comes as Slurm sends it before the limit, to each of them."""
    run = tmp_path / "run"
    many = ["--set", "TRAIN.EPOCHS=8", "LOG.SAVE_STEPS=2"]
    outcome = tool("launch", config, "--output", run, *LOCAL, "--gpus", 2, *many)
    assert outcome.code == 0, outcome.err
    job = int(outcome.out.split()[1].rstrip(":"))
    try:
        wait_until((run / "last.pt").exists)
        assert not (run / "summary.json").exists()
        for task in tasks(job):
            os.kill(task, signal.SIGUSR2)
        os.waitpid(job, 0)
        log = Path(outcome.out.split("tail -F ")[1].splitlines()[0]).read_text()
        assert "stopped after step" in log and "resumed after step" in log, log
        assert json.loads((run / "summary.json").read_text())["iterations"] == 48
        assert len(json.loads((run / "environment.json").read_text())) == 2
    finally:
        for pid in [*tasks(job), job]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def tasks(job: int) -> list[int]:
    """Processes that the job's own has started."""
    with suppress(FileNotFoundError):
        return [int(pid) for pid in Path(f"/proc/{job}/task/{job}/children").read_text().split()]
    return []


def wait_until(condition) -> None:
    deadline = time.monotonic() + 120
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert condition()
