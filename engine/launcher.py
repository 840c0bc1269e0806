"""What launchers say of a process: its rank among how many, and where they meet.

torchrun and most others set RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT: all of them, or none. A task of
``srun --ntasks=N python tools/train.py`` has Slurm's variables alone, and takes its place from them. That is so inside
a step only: a batch script, and the shell of ``salloc``, know the number of tasks too, but start Python once.
``RANK=0 WORLD_SIZE=1`` says that a task of a step works alone.
"""

from __future__ import annotations

import os
import re
import signal
import socket
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass

from elsa.core import ConfigError

SPECIAL_STEPS = 0xFFFFFFF0  # Slurm numbers the steps of batch scripts and interactive shells from here on


@dataclass(frozen=True)
class Place:
    """Of a process among those of its run.

    Attributes:
        local_rank: number on its machine; None where the launcher does not tell it.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int | None = None


def read_place(environment: Mapping[str, str] = os.environ) -> Place:
    """The place that RANK, WORLD_SIZE and LOCAL_RANK tell; without them the only one.

    Raises:
        ConfigError: some of a launcher's variables are absent, empty, no numbers or out of range.
    """
    if not {"RANK", "WORLD_SIZE", "LOCAL_RANK"} & environment.keys():
        return Place()
    world = _number(environment, "WORLD_SIZE", 1)
    rank = _number(environment, "RANK", 0, world - 1)
    local = _number(environment, "LOCAL_RANK", 0, world - 1) if "LOCAL_RANK" in environment else None
    if world > 1:
        if not _value(environment, "MASTER_ADDR").strip():
            raise ConfigError(f"MASTER_ADDR is empty{ADVICE}")
        _number(environment, "MASTER_PORT", 1, 65535)
    return Place(rank, world, local)


ADVICE = "; start with torchrun, it sets all of RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT, or unset them"


def _value(environment: Mapping[str, str], name: str) -> str:
    if name not in environment:
        there = [other for other in ("WORLD_SIZE", "RANK", "LOCAL_RANK") if other in environment]
        raise ConfigError(f"{name} is not set, but {' and '.join(there)} {'are' if there[1:] else 'is'}{ADVICE}")
    return environment[name]


def _number(environment: Mapping[str, str], name: str, least: int, most: int | None = None) -> int:
    text = _value(environment, name).strip()
    if not re.fullmatch("[0-9]{1,18}", text):
        what = f"{text!r}, no whole number" if text else "empty"
        raise ConfigError(f"{name} is {what}{ADVICE}")
    if (number := int(text)) < least or (most is not None and number > most):
        of = f" of WORLD_SIZE {environment.get('WORLD_SIZE')}" if name.endswith("RANK") else ""
        allowed = f"at least {least}" if most is None else f"{least} to {most}"
        raise ConfigError(f"{name} is {number}{of}, it must be {allowed}{ADVICE}")
    return number


# ---- Slurm ---------------------------------------------------------------------------------------------------------


def join_slurm(environment: MutableMapping[str, str] = os.environ) -> None:
    """Gives a task of a Slurm step that no other launcher started the variables of torchrun.

    MASTER_ADDR and MASTER_PORT that are there stay. Else the first node of the step is where the tasks meet, at a port
    that follows from the numbers of job and step.

    Raises:
        ConfigError: Slurm's variables do not fit each other, or to what the environment has already.
    """
    step = environment.get("SLURM_STEP_ID", "")
    if "RANK" in environment or not step.isdigit() or int(step) >= SPECIAL_STEPS or "SLURM_PROCID" not in environment:
        return
    count = "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in environment else "SLURM_NTASKS"
    if environment.get(count, "1") == "1":
        return
    tasks = _slurm_number(environment, count)
    if environment.get("WORLD_SIZE", str(tasks)) != str(tasks):
        raise ConfigError(f"WORLD_SIZE is {environment['WORLD_SIZE']}, but {count} is {tasks}; unset WORLD_SIZE")
    rank, local = (_slurm_number(environment, name, tasks - 1) for name in ("SLURM_PROCID", "SLURM_LOCALID"))
    job = int(environment["SLURM_JOB_ID"]) if environment.get("SLURM_JOB_ID", "").isdigit() else 0
    address = environment.get("MASTER_ADDR") or _first_node(environment)
    port = environment.get("MASTER_PORT") or str(20_000 + (31 * job + int(step)) % 12_000)
    environment.update(RANK=str(rank), WORLD_SIZE=str(tasks), LOCAL_RANK=str(local), MASTER_ADDR=address)
    environment["MASTER_PORT"] = port


def _slurm_number(environment: Mapping[str, str], name: str, most: int = 2**31) -> int:
    text = environment.get(name, "")
    if not re.fullmatch("[0-9]{1,10}", text) or int(text) > most:
        raise ConfigError(
            f"{name} is {text!r} in a step of several tasks; RANK=0 WORLD_SIZE=1 has this process work alone"
        )
    return int(text)


def _first_node(environment: Mapping[str, str]) -> str:
    """The first node of the step where its name is known here, else where srun was started."""
    names = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST") or ""
    nodes = environment.get("SLURM_STEP_NUM_NODES") or environment.get("SLURM_NNODES") or "1"
    if nodes == "1":
        return "127.0.0.1"
    for name in (first_node(names), environment.get("SLURM_LAUNCH_NODE_IPADDR", "")):
        try:
            socket.getaddrinfo(name, None) if name else None
        except OSError:
            continue
        if name:
            return name
    raise ConfigError(f"the first of SLURM_STEP_NODELIST {names!r} cannot be found; set MASTER_ADDR to its address")


def first_node(names: str) -> str:
    """``"gpu[08-11,14],cpu3"`` → ``"gpu08"``: the first of Slurm's list of nodes."""
    return re.sub(r"\[([0-9]+)[^\]]*\]", r"\1", re.split(r",(?![^\[]*\])", names)[0])


# ---- started again --------------------------------------------------------------------------------------------------


def starts() -> int:
    """How often torchrun has started the processes again, the launcher torchrun, and Slurm the job."""
    counts = ("TORCHELASTIC_RESTART_COUNT", "NODE_RESTART_COUNT", "SLURM_RESTART_COUNT")
    return sum(int(os.environ.get(name) or 0) for name in counts)


def forbid_restarts() -> None:
    """Has torchrun end instead of starting the same mistake again: it knows no exit code that would say so.

    The agent of ``scripts/`` does, and leaves SIGTERM to others.
    """
    heard = os.environ.get("TORCHELASTIC_SIGNALS_TO_HANDLE", "SIGTERM")
    if int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")) and "SIGTERM" in heard:
        os.kill(os.getppid(), signal.SIGTERM)
