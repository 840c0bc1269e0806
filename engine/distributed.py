"""Processes and signals: this process among its peers, and the wish to stop."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from elsa.core import ConfigError, UserError, logger


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

    def agree_on(self, value: float) -> bool:
        """Whether all processes have this value."""
        return self.sum([value, value * value]) == [value * self.world_size, value * value * self.world_size]

    def shared(self, names: list[str]) -> list[str]:
        """The names that every process has, in the main process's order."""
        if self.world_size == 1:
            return names
        everyone: list[Any] = [None] * self.world_size
        dist.all_gather_object(everyone, names, group=self.control)
        return [name for name in everyone[0] if all(name in others for others in everyone)]

    def barrier(self) -> None:
        if self.world_size > 1:
            dist.barrier(group=self.control)

    def share_buffers(self, module: torch.nn.Module) -> None:
        """Gives all processes the main process's buffers: each has its own statistics of batch normalisation."""
        if self.world_size > 1:
            for buffer in module.buffers():
                dist.broadcast(buffer, 0)

    def in_main(self, work: Callable[[], object]) -> None:
        """The main process does it while the others wait; where it raises UserError, all do."""
        refused = None
        if self.is_main:
            try:
                work()
            except UserError as error:
                refused = error
        if self.any(refused is not None):
            raise refused or ConfigError("the main process cannot go on, and says why")

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
