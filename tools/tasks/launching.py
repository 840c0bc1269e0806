"""A recipe as a job of a cluster, by the package submitit: one task a process, which saves, is requeued and goes on.

submitit writes the batch script, and starts ``Job`` in each task. Near the time limit, and before a preemption that the
cluster announces, the tasks get SIGUSR2; the training then saves as it does for SIGTERM, and the first task has
submitit requeue the job with ``Job.checkpoint``, which continues the run.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import os
import re
import shutil
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from elsa.core import ConfigError, check_writable, did_you_mean

from .outcome import run

TIMEOUTS = 10_000  # how often a job may come to its time limit: a training ends by its own number of steps
SIGNAL = signal.SIGUSR2  # submitit's, from Slurm
OWN = ("--resume", "--overwrite")  # what a user says of a run that is there


def add_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    day = 24 * 60
    executors = "local: processes of this machine; debug: this process (default slurm)"
    add(
        "--output", type=Path, metavar="DIR", help="the run's folder, seen by all nodes; logs of the job go to DIR/logs"
    )
    add("--executor", choices=("slurm", "local", "debug"), default="slurm", help=executors)
    add("--nodes", type=count, default=1, metavar="N", help="(default 1)")
    add("--gpus", type=count, default=8, metavar="N", help="GPUs of each node, and processes (default 8)")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="with cpu no GPUs are asked for")
    add("--cpus", type=count, metavar="N", help="CPUs of each process, its loader processes included")
    add("--mem", metavar="SIZE", help="memory of each node: 480G; 0 is all")
    add("--time", type=minutes, default=day, help="limit, as Slurm writes it: 2-00:00:00 (default one day)")
    add("--save-seconds", type=count, default=300, metavar="N", help="to save, before the limit (default 300)")
    for name in ("partition", "account", "qos"):
        add(f"--{name}", metavar="NAME")
    add("--name", help="of the job (default that of DIR)")
    further = "further parameters of sbatch: --slurm constraint=h100 exclude=node07"
    add("--slurm", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help=further)


def count(text: str) -> int:
    if not re.fullmatch("[0-9]{1,6}", text) or not int(text):
        raise argparse.ArgumentTypeError(f"must be a number from 1 on, got {text!r}")
    return int(text)


def minutes(text: str) -> int:
    """Of a time as Slurm reads it: M, M:S, H:M:S, D-H, D-H:M or D-H:M:S; a part of a minute is one."""
    found = re.fullmatch(r"(?:(\d{1,4})-)?(\d{1,6})(?::(\d{1,2}))?(?::(\d{1,2}))?", text)
    if not found:
        raise argparse.ArgumentTypeError(f"must be a time as Slurm writes it, 2-00:00:00 or 12:00:00, got {text!r}")
    days, *parts = found.groups()
    numbers = [int(part) for part in parts if part is not None]
    if days is None and len(numbers) < 3:  # minutes, with seconds or without
        numbers = [0, *numbers]
    hours, mins, seconds = [*numbers, 0, 0][:3]
    whole = int(days or 0) * 1440 + hours * 60 + mins + (seconds > 0)
    if not whole:
        raise argparse.ArgumentTypeError(f"must be more than none, got {text!r}")
    return whole


def parse(parser: argparse.ArgumentParser) -> tuple[argparse.Namespace, list[str]]:
    """The launcher's options, and the arguments of train, which have been checked with the recipe; with
    --print-config it is printed, and ends here.

    Raises:
        ConfigError: a mistake in any of them.
    """
    args, rest = parser.parse_known_args()
    if "--print-config" in rest:
        train(rest)
    if args.output is None:
        raise ConfigError("--output DIR is needed: where checkpoints and logs go")
    if odd := [pair for pair in args.slurm if not re.fullmatch(r"[a-z][\w-]*=.+", pair)]:
        raise ConfigError(f"--slurm {odd[0]!r} must be KEY=VALUE, with a key of sbatch")
    if args.executor != "slurm" and args.nodes > 1:
        raise ConfigError(f"--executor {args.executor} has one node, and --nodes is {args.nodes}")
    check_writable(args.output)
    try:
        _check([*rest, "--print-config"])
    except ConfigError as error:
        flags = [part.split("=")[0] for part in rest if part.startswith("--")]
        near = {flag: did_you_mean(flag, parser._option_string_actions, 0.8) for flag in flags}
        for flag, hint in near.items():
            if hint and str(error).startswith(f"unknown argument {flag!r}"):
                raise ConfigError(f"unknown argument {flag!r}{hint}") from error
        raise
    own = any(part.split("=")[0] in OWN for part in rest)
    how = ["--output", str(args.output), "--device", args.device]
    return args, [*rest, *how, *([] if own else ["--resume", "auto"])]


def _check(arguments: list[str]) -> None:
    """What train says of the recipe and the options; what it would print is not wanted."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            train(arguments)
    except SystemExit as ended:
        if ended.code:
            raise


def train(arguments: list[str]) -> None:
    """The verb, in this process."""
    from elsa.tools import train as verb

    sys.argv = ["tools/train.py", *arguments]
    verb.main()


def submit(args: argparse.Namespace, arguments: list[str]) -> None:
    """Hands the job over and says how to follow it.

    Raises:
        ConfigError: submitit or Slurm is not there, or Slurm does not take the job.
    """
    if importlib.util.find_spec("submitit") is None:
        raise ConfigError(
            "submitit is not installed: pip install 'submitit>=1.5', or scripts/train_slurm.sh without it"
        )
    import submitit

    os.environ.setdefault("OMP_NUM_THREADS", "1")  # the job has this environment
    folder = args.output / "logs"
    first = not folder.exists()
    try:
        executor = submitit.AutoExecutor(folder, args.executor, slurm_max_num_timeout=TIMEOUTS)
        executor.update_parameters(**_parameters(args))
        job = executor.submit(Job(arguments))
    except (RuntimeError, OSError, submitit.core.utils.FailedJobError) as error:
        if first:  # what submitit has written for a job that there will not be
            shutil.rmtree(folder, ignore_errors=True)
            with contextlib.suppress(OSError):
                args.output.rmdir()
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        raise ConfigError(f"--executor {args.executor} does not take the job: {reason}") from error
    if args.executor == "debug":
        job.results()
        return
    cancel = f"scancel {job.job_id}" if args.executor == "slurm" else f"kill {job.job_id}  # saves first"
    print(f"job {job.job_id}: {args.nodes} × {args.gpus} processes; logs in {folder}/{job.job_id}_*")
    print(f"follow it: tail -F {job.paths.stderr}\ncancel it: {cancel}")


def _parameters(args: argparse.Namespace) -> dict[str, Any]:
    """submitit's, of which those named slurm_ are for Slurm alone."""
    further = dict(pair.split("=", 1) for pair in args.slurm)
    given = {"partition": args.partition, "account": args.account, "qos": args.qos, "mem": args.mem}
    return {
        "name": args.name or args.output.resolve().name,
        "nodes": args.nodes,
        "tasks_per_node": args.gpus,
        "gpus_per_node": None if args.device == "cpu" else args.gpus,
        "cpus_per_task": args.cpus,
        "timeout_min": args.time,
        "slurm_signal_delay_s": args.save_seconds,
        "slurm_srun_args": [f"--cpus-per-task={args.cpus}"] if args.cpus else None,  # srun does not inherit it
        "slurm_additional_parameters": further or None,
        **{f"slurm_{name}": value for name, value in given.items()},
    }


class Job:
    """A task of the job: one process of the training."""

    def __init__(self, arguments: list[str]) -> None:
        self.arguments = arguments

    def __call__(self) -> None:
        """Trains; a mistake, or a training that cannot go on, ends the task with one line and an exit code."""
        from submitit.helpers import TorchDistributedEnvironment

        place = TorchDistributedEnvironment()
        if place.world_size == place.local_world_size:
            place.master_addr = "127.0.0.1"  # one node need not know its name
        place.export(set_cuda_visible_devices=False, overwrite=True)
        left = threading.Event()
        requeue = signal.getsignal(SIGNAL)
        signal.signal(SIGNAL, lambda *_: (left.set(), os.kill(os.getpid(), signal.SIGTERM)))
        run(lambda: train(self.arguments))
        if left.is_set() and callable(requeue) and not self.finished:
            requeue(SIGNAL, None)

    @property
    def finished(self) -> bool:
        return (Path(self.arguments[self.arguments.index("--output") + 1]) / "summary.json").exists()

    def checkpoint(self) -> Any:
        """For submitit: what the requeued job does, the same from the run's last save."""
        from submitit.helpers import DelayedSubmission

        words = iter(self.arguments)
        kept = [word for word in words if not (word == "--resume" and next(words)) and word.split("=")[0] not in OWN]
        return DelayedSubmission(Job([*kept, "--resume", "auto"]))
