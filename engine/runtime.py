"""Processes, seeds, signals, and what a run says about the machine it ran on."""

from __future__ import annotations

import logging
import os
import platform
import random
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from tqdm import tqdm

from .config import ConfigError

logger = logging.getLogger("elsa")


@dataclass(frozen=True)
class Runtime:
    """This process among its peers: rank, world size and device.

    ``control`` is a process group on the CPU for counts and flags, so that agreeing on them never waits for a GPU.
    """

    rank: int
    world_size: int
    device: torch.device
    control: Any = None

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def sum(self, values: list[float]) -> list[float]:
        """Element-wise sum over all processes, in float64."""
        if self.world_size == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(tensor, group=self.control)
        return tensor.tolist()

    def any(self, flag: bool) -> bool:
        """Whether the flag is up in any process."""
        return self.sum([float(flag)])[0] > 0

    def barrier(self) -> None:
        if self.world_size > 1:
            dist.barrier(group=self.control)

    def share_buffers(self, module: torch.nn.Module) -> None:
        """Gives all processes the main process's buffers: each has its own statistics of batch normalisation."""
        if self.world_size > 1:
            for buffer in module.buffers():
                dist.broadcast(buffer, 0)

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """The main process runs the body before the others do (to prepare files that all read)."""
        if not self.is_main:
            self.barrier()
        yield
        if self.is_main:
            self.barrier()


@contextmanager
def distributed(device: str = "auto") -> Iterator[Runtime]:
    """Joins the process group that torchrun (or any launcher setting RANK and WORLD_SIZE) describes, and leaves it.

    Args:
        device: "auto" for a GPU where there is one, "cpu", "cuda" or "cuda:N".

    Raises:
        ConfigError: a device that is not there.
    """
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    where = _choose_device(device, local_rank)
    if where.type == "cuda":
        torch.cuda.set_device(where)
    if world == 1:
        yield Runtime(0, 1, where)
        return
    backend, bound = ("nccl", where) if where.type == "cuda" else ("gloo", None)
    dist.init_process_group(backend, timeout=timedelta(minutes=30), device_id=bound)
    try:
        yield Runtime(rank, world, where, dist.new_group(backend="gloo"))
    finally:
        dist.destroy_process_group()


def _choose_device(device: str, local_rank: int) -> torch.device:
    if device == "cpu" or (device == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    kind, _, number = device.partition(":")
    if kind not in ("auto", "cuda") or not (number or "0").isdigit():
        raise ConfigError(f"--device must be auto, cpu, cuda or cuda:N, got {device!r}")
    count, index = torch.cuda.device_count(), int(number or local_rank)
    if not torch.cuda.is_available() or index >= count:
        raise ConfigError(f"--device {device} (local rank {local_rank}) asks for GPU {index}; {count} are visible")
    return torch.device("cuda", index)


def mix_seed(*parts: int | str) -> int:
    """A 32-bit seed that depends on all parts."""
    return zlib.crc32(repr(parts).encode())


def seed_everything(*parts: int | str) -> None:
    """Seeds Python, NumPy and PyTorch.

    Training calls this at every step with (seed, rank, step): nothing random is carried from step to step, so a
    resumed run continues exactly without storing generator states.
    """
    seed = mix_seed(*parts)
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


class StopRequest:
    """Turns SIGINT and SIGTERM into a flag; SIGINT again, by a person who will not wait, stops at once.

    Launchers forward the signal that their workers got from the terminal or the scheduler already, so a repetition
    within ``GRACE`` seconds is the same request; SIGTERM is always followed by SIGKILL if need be.
    """

    GRACE = 2.0

    def __init__(self) -> None:
        self.name, self.since = "", 0.0
        self._old: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._old[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, old in self._old.items():
            signal.signal(number, old)

    def _handle(self, number: int, _frame: object) -> None:
        if self.name:
            if number == signal.SIGINT and time.monotonic() - self.since > self.GRACE:
                raise KeyboardInterrupt
            return
        self.name, self.since = signal.Signals(number).name, time.monotonic()
        logger.warning("%s: finishing this step and saving; Ctrl-C again to stop at once", self.name)


def setup_logging(runtime: Runtime, file: Path | None = None) -> None:
    """Console and file for the main process; the others only warn."""
    logger.handlers.clear()
    logger.propagate = False
    logger.setLevel(logging.INFO if runtime.is_main else logging.WARNING)
    prefix = "" if runtime.is_main else f"[rank {runtime.rank}] "
    handlers: list[logging.Handler] = [_ConsoleHandler()]
    if file is not None and runtime.is_main:
        handlers.append(logging.FileHandler(file))
    for handler in handlers:
        with_date = isinstance(handler, logging.FileHandler)
        form = "%(asctime)s %(message)s" if with_date else f"{prefix}%(message)s"
        handler.setFormatter(logging.Formatter(form, "%Y-%m-%d %H:%M:%S"))
        logger.addHandler(handler)


class _ConsoleHandler(logging.Handler):
    """Writes lines to stderr without tearing a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stderr)


def describe_environment(runtime: Runtime) -> dict[str, Any]:
    """Versions, hardware, command and git state, for the run's folder."""
    packages = ("torchvision", "timm", "numpy", "pillow", "safetensors", "yacs")
    gpu = torch.cuda.get_device_name(runtime.device) if runtime.device.type == "cuda" else None
    return {
        "command": sys.argv,
        "python": platform.python_version(),
        "packages": {"torch": torch.__version__, **{name: metadata.version(name) for name in packages}},
        "platform": platform.platform(),
        "device": gpu or platform.processor() or platform.machine(),
        "world_size": runtime.world_size,
        "threads": torch.get_num_threads(),
        "git": _git_state(),
    }


def _git_state() -> dict[str, str] | None:
    """Commit and uncommitted changes of the code that runs; None where it is no git checkout."""
    here = Path(__file__).resolve().parent

    def git(*arguments: str) -> str:
        return subprocess.run(["git", "-C", here, *arguments], capture_output=True, text=True, check=True).stdout

    try:
        return {"commit": git("rev-parse", "HEAD").strip(), "changes": git("status", "--porcelain")}
    except (OSError, subprocess.CalledProcessError):
        return None
