"""The order of training samples, for all tasks: a function of the seed and the epoch alone.

Neither the number of loader processes nor an interruption changes what a step sees, and with the same global batch
neither does the number of training processes nor of accumulated micro-batches.
"""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from elsa.core import DataError, UnreadableData, logger, mix_seed

MAX_REPLACEMENTS = 50  # consecutive images that cannot be used after which the data set is given up
Order = Callable[[int], Sequence[int] | Tensor]
"""epoch → positions in the data set, in the order of that epoch."""


class BadImages:
    """Names of unreadable images; more than ``limit`` of them end the run."""

    def __init__(self, limit: int, option: str) -> None:
        self.limit, self.option = limit, option
        self.names: dict[str, bool] = {}

    def add(self, names: Sequence[str]) -> None:
        for name in names:
            if name not in self.names:
                self.names[name] = True
                logger.warning("skipping %s: it cannot be read", name)
        if len(self.names) > self.limit:
            listed = ", ".join(list(self.names)[:5])
            raise UnreadableData(f"{len(self.names)} images cannot be read ({self.option} is {self.limit}): {listed}")


def divide_batch(batch: int, processes: int, accumulate: int, name: str, accumulate_name: str) -> int:
    """Images that one process holds at a time.

    Raises:
        DataError: the global batch cannot be divided so; the message has the keys' names.
    """
    micro, rest = divmod(batch, processes * accumulate)
    if rest or not micro:
        raise DataError(
            f"{name} {batch} is no multiple of {processes} processes × {accumulate_name} {accumulate} = "
            f"{processes * accumulate}; the recipe's learning rate belongs to it"
        )
    return micro


class TrainSampler(Sampler):
    """Micro-batches of (epoch, index) for one process: an order per epoch, cut into global batches.

    Step s takes entries s·B … (s+1)·B of the order, B the global batch, whatever the number of processes; what remains
    after the last whole batch waits for another epoch.

    Args:
        interleaved: whether neighbours go to different processes, instead of staying together where they can.

    Attributes:
        epoch, first_step: where the next iteration begins.
    """

    def __init__(
        self,
        order: Order,
        length: int,
        batch: int,
        accum: int,
        rank: int,
        world_size: int,
        interleaved: bool = False,
    ) -> None:
        self.order, self.length, self.batch, self.accum, self.interleaved = order, length, batch, accum, interleaved
        self.rank, self.world_size = rank, world_size
        self.epoch, self.first_step = 0, 0

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = torch.as_tensor(self.order(self.epoch))
        for step in range(self.first_step, self.length // self.batch):
            members = order[step * self.batch : (step + 1) * self.batch]
            if self.interleaved:
                mine = members.reshape(self.accum, -1, self.world_size)[:, :, self.rank]
            else:
                mine = members.reshape(self.accum, self.world_size, -1)[:, self.rank]
            for micro_batch in mine:
                yield [(self.epoch, index) for index in micro_batch.tolist()]


class TrainLoader:
    """Micro-batches of each step of an epoch.

    Args:
        loader: of micro-batches; where there is no ``sampler`` of a streaming data set with ``stream`` and ``seed``.
        bad_of: the names of unreadable images that a micro-batch met.

    Attributes:
        images: of the whole split; steps_per_epoch: optimizer steps; bad: unreadable images met by this process.
    """

    def __init__(
        self,
        loader: DataLoader,
        sampler: TrainSampler | None,
        images: int,
        batch: int,
        accum: int,
        bad: BadImages,
        bad_of: Callable[[Any], Sequence[str]] = lambda batch: batch.bad,
    ) -> None:
        self.loader, self.sampler, self.bad, self.bad_of = loader, sampler, bad, bad_of
        self._workers: Iterator[Any] | None = None
        self.images, self.steps_per_epoch, self.accum = images, images // batch, accum

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[list[Any]]:
        """The micro-batches of the steps of an epoch, from ``first_step`` on."""
        if self.sampler is not None:
            self.sampler.epoch, self.sampler.first_step = epoch, first_step
            batches = self._workers = iter(self.loader)
        else:
            self.loader.dataset.stream.set_epoch(epoch)
            self.loader.generator.manual_seed(mix_seed(self.loader.dataset.seed, epoch))
            endless = itertools.chain.from_iterable(itertools.repeat(self.loader))
            batches = itertools.islice(endless, first_step * self.accum, self.steps_per_epoch * self.accum)
        while step := self._next_step(batches):
            for batch in step:
                self.bad.add(self.bad_of(batch))
            yield step

    def killed(self) -> str:
        """Which loader process was killed, in words; empty where none was."""
        for process in getattr(self._workers, "_workers", ()):
            if process.exitcode is not None and process.exitcode < 0:
                name = signal.Signals(-process.exitcode).name
                return f"a loader process was killed ({name}): is there memory for {self.loader.num_workers} of them?"
        return ""

    def _next_step(self, batches: Iterator[Any]) -> list[Any]:
        try:
            return list(itertools.islice(batches, self.accum))
        except DataError as error:  # of a loader process, told with its traceback
            raise DataError(str(error).strip().splitlines()[-1].split("DataError: ")[-1]) from None


def leave_process_group(_worker: int) -> None:
    """Ctrl-C reaches all processes of a group: without loader processes, the step under way could not be finished."""
    os.setpgrp()
