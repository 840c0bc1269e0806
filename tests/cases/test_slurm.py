"""scripts/train_slurm.sh with stand-ins of Slurm's commands: what is asked of them, and who requeues the job when."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

# Each writes down what it is asked for. srun's step is the training; scancel signals it as Slurm does: not the script.
STANDS_IN = {
    "srun": """
echo "srun $*" >>"$NOTES"
while [[ $1 == --* ]]; do shift; done
"$@" & echo $! >"$NOTES.step"
wait $!
""",
    "scancel": """
echo "scancel $*" >>"$NOTES"
kill -TERM "$(cat "$NOTES.step")"
""",
    "scontrol": """
if [ "$1" = show ]; then printf 'gpu%s\\n' 07 08 && exit; fi
echo "scontrol $*" >>"$NOTES"
""",
    "python": """
echo "python $* HEAD=$HEAD NODES=$NODES GPUS=$GPUS" >>"$NOTES"
trap 'sleep 0.3; echo saved >>"$NOTES"; eval "$AT_LIMIT"' TERM
touch "$NOTES.ready"
$AT_ONCE
while :; do sleep 0.05; done
""",
}


@pytest.fixture
def batch(root, tmp_path):
    """``batch(at_once=, at_limit=)``: starts the script as slurmd does, from a copy elsewhere; what the training does
    by itself, or when it is asked to stop: words of the shell."""
    bin, notes = tmp_path / "bin", tmp_path / "notes"
    bin.mkdir()
    for name, text in STANDS_IN.items():
        (bin / name).write_text(f"#!/usr/bin/env bash\n{text}")
        (bin / name).chmod(0o755)
    copy = tmp_path / "slurm_script"
    copy.write_text((root / "scripts/train_slurm.sh").read_text())
    processes = []

    def call(*, at_once: str = "", at_limit: str = "exit 0") -> subprocess.Popen:
        slurm = dict(JOB_ID="4711", JOB_NODELIST="gpu[07-08]", NNODES="2", SUBMIT_DIR=str(root), GPUS_ON_NODE="8",
                     CPUS_PER_TASK="64")  # fmt: skip
        environment = {key: value for key, value in os.environ.items() if key not in ("GPUS", "PORT", "RDZV_ID")}
        environment |= {f"SLURM_{name}": value for name, value in slurm.items()}
        environment |= dict(PATH=f"{bin}:{os.environ['PATH']}", NOTES=str(notes), AT_ONCE=at_once, AT_LIMIT=at_limit)
        line = ["bash", str(copy), "c.yaml", "--output", "run"]
        (tmp_path / "run").mkdir()
        processes.append(subprocess.Popen(line, env=environment, cwd=tmp_path, start_new_session=True))
        wait_for(tmp_path / "notes.ready")
        return processes[-1]

    yield call
    for process in processes:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
        process.wait()


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 30
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert path.exists()


def notes(tmp_path: Path) -> list[str]:
    return (tmp_path / "notes").read_text().splitlines()


def test_what_the_script_asks_slurm_for(root):
    options = dict(re.findall(r"^#SBATCH --([a-z-]+)=?(\S*)$", (root / "scripts/train_slurm.sh").read_text(), re.M))
    assert options["ntasks-per-node"] == "1", "torchrun starts the others"
    assert options["open-mode"] == "append" and "requeue" in options and "time" in options
    signal_name, seconds = re.fullmatch(r"B:(\w+)@(\d+)", options["signal"]).groups()
    assert signal_name == "USR1", "what the script heeds; B: the script alone"
    assert int(seconds) >= 300


def test_each_task_has_its_cpus_and_the_job_its_port(batch, tmp_path):
    assert batch(at_once="exit 0").wait(30) == 0
    srun, python = notes(tmp_path)
    assert {"--kill-on-bad-exit=1", "--cpus-per-task=64"} <= set(srun.split())
    assert {"--rdzv-endpoint=gpu07:24711", "--rdzv-id=4711", "--nnodes=2", "--nproc-per-node=8"} <= set(python.split())
    assert python.endswith("train.py c.yaml --output run --resume auto HEAD=gpu07 NODES=2 GPUS=8")


def test_at_the_time_limit_the_job_saves_and_then_requeues_itself(batch, tmp_path):
    job = batch()
    job.send_signal(signal.SIGUSR1)
    assert job.wait(30) == 0
    assert notes(tmp_path)[2:] == ["scancel --signal=TERM 4711", "saved", "scontrol requeue 4711"]


@pytest.mark.parametrize(
    ("at_limit", "code", "requeued"),
    [
        ("touch run/summary.json; exit 0", 0, False),  # it came to its end meanwhile
        ("exit 2", 2, False),  # a mistake would be the same again
        ("exit 1", 1, True),  # lost a process while it saved: it goes on from the save before
    ],
)
def test_what_else_happens_at_the_time_limit(batch, tmp_path, at_limit, code, requeued):
    job = batch(at_limit=at_limit)
    job.send_signal(signal.SIGUSR1)
    assert job.wait(30) == code
    assert ("scontrol requeue 4711" in notes(tmp_path)) == requeued


@pytest.mark.parametrize("code", [0, 1, 2])
def test_what_ends_by_itself_is_not_requeued(batch, tmp_path, code):
    assert batch(at_once=f"exit {code}").wait(30) == code
    assert not any("requeue" in line for line in notes(tmp_path))


def test_a_cancelled_job_is_not_requeued(batch, tmp_path):
    job = batch()
    job.send_signal(signal.SIGTERM)  # scancel without --signal: to the script, too
    assert job.wait(30) == -signal.SIGTERM
    assert not any("requeue" in line for line in notes(tmp_path))
